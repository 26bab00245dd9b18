//! Who a container runs as: the CRI security context and the image's `USER`, looked up in the image's own
//! `/etc/passwd` and `/etc/group`.
//!
//! Invariant: both files are hostile texts. They are read up to [`MAX_LINES`] lines and [`MAX_BYTES`] bytes, lines that
//! are not what they should be are skipped, and no name is ever looked up on the host.

use cofferdam_proto::cri;

/// Beyond these, a file is cut off: a real one never comes near.
const MAX_BYTES: usize = 1 << 20;
const MAX_LINES: usize = 20_000;

/// Why no user could be settled.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UserError {
    #[error("no user named {0:?} in the image's /etc/passwd")]
    NoSuchUser(String),
    #[error("no group named {0:?} in the image's /etc/group")]
    NoSuchGroup(String),
    #[error("run_as_group is given without run_as_user or run_as_username")]
    GroupWithoutUser,
    #[error("{field} {value} is no user or group id: expected 0 to 4294967294")]
    BadId { field: &'static str, value: i64 },
}

/// The numbers a process runs with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups; the primary one is among them, as the kubelet expects to read it in the status.
    pub additional_gids: Vec<u32>,
    /// The home folder, where the image's passwd names one.
    pub home: Option<String>,
}

/// The image's account files, as they were read from its rootfs; empty where it has none.
#[derive(Clone, Copy, Debug, Default)]
pub struct AccountFiles<'a> {
    /// `/etc/passwd`.
    pub passwd: &'a [u8],
    /// `/etc/group`.
    pub group: &'a [u8],
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn lines(text: &[u8]) -> impl Iterator<Item = &str> {
    let text = &text[..text.len().min(MAX_BYTES)];
    text.split(|byte| *byte == b'\n').take(MAX_LINES).filter_map(|line| std::str::from_utf8(line).ok())
}

impl<'a> AccountFiles<'a> {
    fn accounts(self) -> impl Iterator<Item = Account<'a>> {
        lines(self.passwd).filter_map(|line| {
            let mut fields = line.trim_end_matches('\r').split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let uid = fields.nth(1)?.trim().parse().ok()?;
            let gid = fields.next()?.trim().parse().ok()?;
            Some(Account { name, uid, gid, home: fields.nth(1).unwrap_or("") })
        })
    }

    fn groups(self) -> impl Iterator<Item = Group<'a>> {
        lines(self.group).filter_map(|line| {
            let mut fields = line.trim_end_matches('\r').split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let gid = fields.nth(1)?.trim().parse().ok()?;
            Some(Group { name, gid, members: fields.next().unwrap_or("") })
        })
    }

    /// A user by name or number. A number needs no entry; its primary group is then 0, as with other runtimes.
    fn user(self, text: &str) -> Result<(ResolvedUser, Option<&'a str>), UserError> {
        let number = text.parse::<u32>().ok().filter(|id| *id != u32::MAX);
        let found = self.accounts().find(|account| account.name == text || number == Some(account.uid)).map(
            |account| {
                let home = Some(account.home).filter(|home| home.starts_with('/')).map(str::to_owned);
                let user =
                    ResolvedUser { uid: account.uid, gid: account.gid, additional_gids: Vec::new(), home };
                (user, Some(account.name))
            },
        );
        match (found, number) {
            (Some(found), _) => Ok(found),
            (None, Some(uid)) => Ok((ResolvedUser { uid, ..ResolvedUser::default() }, None)),
            (None, None) => Err(UserError::NoSuchUser(text.to_owned())),
        }
    }

    fn group_id(self, text: &str) -> Result<u32, UserError> {
        if let Some(group) = self.groups().find(|group| group.name == text) {
            return Ok(group.gid);
        }
        let number = text.parse::<u32>().ok().filter(|id| *id != u32::MAX);
        number.ok_or_else(|| UserError::NoSuchGroup(text.to_owned()))
    }

    fn memberships(self, name: &str) -> impl Iterator<Item = u32> {
        let is_member = move |group: &Group| group.members.split(',').any(|member| member.trim() == name);
        self.groups().filter(is_member).map(|group| group.gid)
    }
}

fn id(field: &'static str, value: i64) -> Result<u32, UserError> {
    // The highest number means "leave as it is" to the kernel and is nobody's id.
    u32::try_from(value).ok().filter(|id| *id != u32::MAX).ok_or(UserError::BadId { field, value })
}

fn add(gids: &mut Vec<u32>, gid: u32) {
    if !gids.contains(&gid) {
        gids.push(gid);
    }
}

/// Settles the user of a container. `image_user` is the image's `USER`.
///
/// # Errors
/// When a name is in neither file, an id is out of range, or a group is given without a user.
pub fn resolve(
    security: &cri::LinuxContainerSecurityContext,
    image_user: &str,
    files: AccountFiles<'_>,
) -> Result<ResolvedUser, UserError> {
    let requested = match (&security.run_as_user, security.run_as_username.as_str()) {
        (Some(uid), _) => Some(id("run_as_user", uid.value)?.to_string()),
        (None, "") => None,
        (None, name) => Some(name.to_owned()),
    };
    let (mut user, name) = match &requested {
        Some(text) => files.user(text)?,
        None => {
            if security.run_as_group.is_some() {
                return Err(UserError::GroupWithoutUser);
            }
            let (user_text, group_text) = image_user.split_once(':').unwrap_or((image_user, ""));
            let user_text = if user_text.is_empty() { "0" } else { user_text };
            let (mut user, name) = files.user(user_text)?;
            if !group_text.is_empty() {
                user.gid = files.group_id(group_text)?;
            }
            (user, name)
        }
    };
    if let Some(gid) = &security.run_as_group {
        user.gid = id("run_as_group", gid.value)?;
    }
    add(&mut user.additional_gids, user.gid);
    // Strict means that the image has no say in the groups; Merge adds those that its group file lists.
    let merges = security.supplemental_groups_policy != cri::SupplementalGroupsPolicy::Strict as i32;
    if let Some(name) = name.filter(|_| merges) {
        files.memberships(name).for_each(|gid| add(&mut user.additional_gids, gid));
    }
    for gid in &security.supplemental_groups {
        add(&mut user.additional_gids, id("supplemental_groups", *gid)?);
    }
    Ok(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: AccountFiles<'static> = AccountFiles {
        passwd: b"root:x:0:0:root:/root:/bin/sh\ngarbage\n\xff\xfe:x:7:7::/:\n:x:5:5::/:/\nweb:x:33:34:www:/srv:/bin/false\n\
                  bad:x:minus:0::/:\nbare:x:9:9\n1000:x:2000:2000::/odd:/bin/sh\n",
        group: b"root:x:0:\nwww:x:34:\nlogs:x:50:web,other\nextra:x:51: web \njunk\nbad:x:y:web\ndup:x:50:web\n",
    };

    fn value(value: i64) -> Option<cri::Int64Value> {
        Some(cri::Int64Value { value })
    }

    fn context() -> cri::LinuxContainerSecurityContext {
        cri::LinuxContainerSecurityContext::default()
    }

    fn numbers(user: &ResolvedUser) -> (u32, u32, Vec<u32>) {
        (user.uid, user.gid, user.additional_gids.clone())
    }

    #[test]
    fn the_images_user_is_read_in_every_form() {
        type Numbers = (u32, u32, Vec<u32>);
        let table: [(&str, Numbers); 9] = [
            ("", (0, 0, vec![0])),
            ("root", (0, 0, vec![0])),
            ("web", (33, 34, vec![34, 50, 51])),
            ("33", (33, 34, vec![34, 50, 51])),
            ("web:logs", (33, 50, vec![50, 51])),
            ("web:7", (33, 7, vec![7, 50, 51])),
            ("4000", (4000, 0, vec![0])),
            ("4000:4001", (4000, 4001, vec![4001])),
            (":logs", (0, 50, vec![50])),
        ];
        for (text, expected) in table {
            assert_eq!(numbers(&resolve(&context(), text, FILES).unwrap()), expected, "{text:?}");
        }
        assert_eq!(resolve(&context(), "web", FILES).unwrap().home.as_deref(), Some("/srv"));
        assert_eq!(resolve(&context(), "bare", FILES).unwrap().home, None);
    }

    #[test]
    fn the_request_goes_before_the_image() {
        let mut request = context();
        request.run_as_user = value(33);
        assert_eq!(numbers(&resolve(&request, "root", FILES).unwrap()), (33, 34, vec![34, 50, 51]));
        request.run_as_group = value(99);
        assert_eq!(numbers(&resolve(&request, "root", FILES).unwrap()), (33, 99, vec![99, 50, 51]));
        request.supplemental_groups = vec![60, 50];
        assert_eq!(numbers(&resolve(&request, "", FILES).unwrap()), (33, 99, vec![99, 50, 51, 60]));
        request.supplemental_groups_policy = cri::SupplementalGroupsPolicy::Strict as i32;
        assert_eq!(numbers(&resolve(&request, "", FILES).unwrap()), (33, 99, vec![99, 60, 50]));
        let mut named = context();
        named.run_as_username = "web".to_owned();
        assert_eq!(
            resolve(&named, "root:root", FILES).unwrap().gid,
            34,
            "the image's group goes with its user"
        );
    }

    #[test]
    fn errors_name_what_is_missing() {
        let error = |request: &cri::LinuxContainerSecurityContext, text: &str| {
            resolve(request, text, FILES).unwrap_err().to_string()
        };
        assert_eq!(error(&context(), "ghost"), "no user named \"ghost\" in the image's /etc/passwd");
        assert_eq!(error(&context(), "web:ghosts"), "no group named \"ghosts\" in the image's /etc/group");
        assert_eq!(error(&context(), "bad"), "no user named \"bad\" in the image's /etc/passwd");
        assert_eq!(
            error(&context(), "4294967295"),
            "no user named \"4294967295\" in the image's /etc/passwd"
        );
        let mut request = context();
        request.run_as_group = value(1);
        assert_eq!(error(&request, ""), UserError::GroupWithoutUser.to_string());
        request.run_as_user = value(-1);
        assert!(error(&request, "").starts_with("run_as_user -1"));
        let no_files = resolve(&context(), "web", AccountFiles::default()).unwrap_err();
        assert_eq!(no_files, UserError::NoSuchUser("web".to_owned()));
    }

    #[test]
    fn a_file_without_end_is_cut_off() {
        let mut passwd = b"x:x:1:1::/:\n".repeat(MAX_LINES);
        passwd.extend_from_slice(b"late:x:2:2::/:\n");
        let files = AccountFiles { passwd: &passwd, group: b"" };
        assert!(resolve(&context(), "late", files).is_err());
        assert_eq!(resolve(&context(), "x", files).unwrap().uid, 1);
    }
}
