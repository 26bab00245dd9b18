//! The user namespace of a pod, as the kubelet hands it out, and the mappings of single mounts.
//!
//! Invariant: root inside is never root outside, and every id of a range is one that the kernel knows.

use cofferdam_proto::cri::{self, NamespaceMode};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};

use super::error::SpecError;

/// What the kernel takes in one map. user_namespaces(7)
const MAX_LINES: usize = 340;

/// Ids from 0 on inside, from `outside` on outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    pub outside: u32,
    pub count: u32,
}

impl IdRange {
    fn of(field: &'static str, mappings: &[cri::IdMapping]) -> Result<Self, SpecError> {
        let [mapping] = mappings else {
            return Err(invalid(field, &mappings.len().to_string(), "a pod needs exactly one mapping"));
        };
        let line = check_line(field, mapping)?;
        if line.container_id() != 0 {
            return Err(invalid(field, &shown(mapping), "id 0 of the pod is not mapped"));
        }
        if line.host_id() == 0 {
            return Err(invalid(field, &shown(mapping), "root of the pod would be root of the node"));
        }
        Ok(Self { outside: line.host_id(), count: line.size() })
    }

    /// Who `inside` is outside.
    #[must_use]
    pub fn outside_of(self, inside: u32) -> Option<u32> {
        (inside < self.count).then(|| self.outside + inside)
    }

    fn overlaps(self, other: Self) -> bool {
        let end = |range: Self| u64::from(range.outside) + u64::from(range.count);
        u64::from(self.outside) < end(other) && u64::from(other.outside) < end(self)
    }

    fn line(self) -> LinuxIdMapping {
        line(0, self.outside, self.count)
    }
}

/// The user namespace of a pod: one range of users and one of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserNamespace {
    pub uids: IdRange,
    pub gids: IdRange,
}

impl UserNamespace {
    /// What `options` ask for; `None` is the node's own.
    ///
    /// # Errors
    /// When the mode has no meaning for a pod, or the ranges are none.
    pub fn of(options: &cri::NamespaceOption) -> Result<Option<Self>, SpecError> {
        const FIELD: &str = "userns_options";
        let Some(asked) = &options.userns_options else { return Ok(None) };
        let mode = NamespaceMode::try_from(asked.mode)
            .map_err(|_| invalid(FIELD, &asked.mode.to_string(), "no namespace mode of the CRI"))?;
        match mode {
            NamespaceMode::Node if asked.uids.is_empty() && asked.gids.is_empty() => Ok(None),
            NamespaceMode::Node => Err(invalid(FIELD, "NODE", "the node's own users are not mapped")),
            NamespaceMode::Pod => Ok(Some(Self {
                uids: IdRange::of("userns_options.uids", &asked.uids)?,
                gids: IdRange::of("userns_options.gids", &asked.gids)?,
            })),
            NamespaceMode::Container | NamespaceMode::Target => {
                Err(invalid(FIELD, mode.as_str_name(), "a user namespace is either the pod's or the node's"))
            }
        }
    }

    /// Whether a user or group of the node stands for someone in both.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.uids.overlaps(other.uids) || self.gids.overlaps(other.gids)
    }

    /// The maps of users and groups.
    #[must_use]
    pub fn maps(self) -> (Vec<LinuxIdMapping>, Vec<LinuxIdMapping>) {
        (vec![self.uids.line()], vec![self.gids.line()])
    }
}

/// Whether a process can have these numbers in the pod.
///
/// # Errors
/// When the pod's users do not hold one of them.
pub fn check_mapped(users: Option<UserNamespace>, uid: u32, gids: &[u32]) -> Result<(), SpecError> {
    let Some(users) = users else { return Ok(()) };
    let why = "the pod's user namespace does not hold it";
    if users.uids.outside_of(uid).is_none() {
        return Err(invalid("user", &uid.to_string(), why));
    }
    match gids.iter().find(|gid| users.gids.outside_of(**gid).is_none()) {
        Some(gid) => Err(invalid("group", &gid.to_string(), why)),
        None => Ok(()),
    }
}

/// The mappings of one mount, if it has any.
///
/// # Errors
/// When there is only half of them, or a line is none.
pub fn of_mount(
    request: &cri::Mount,
) -> Result<Option<(Vec<LinuxIdMapping>, Vec<LinuxIdMapping>)>, SpecError> {
    let (uids, gids) = (&request.uid_mappings, &request.gid_mappings);
    if uids.is_empty() && gids.is_empty() {
        return Ok(None);
    }
    Ok(Some((lines("uidMappings", request, uids)?, lines("gidMappings", request, gids)?)))
}

fn lines(
    field: &'static str,
    request: &cri::Mount,
    mappings: &[cri::IdMapping],
) -> Result<Vec<LinuxIdMapping>, SpecError> {
    let place = &request.container_path;
    if mappings.is_empty() {
        return Err(invalid(field, place, "users and groups are mapped together or not at all"));
    }
    if mappings.len() > MAX_LINES {
        return Err(invalid(field, place, "more than 340 lines, the kernel's limit"));
    }
    let all = mappings.iter().map(|mapping| check_line(field, mapping)).collect::<Result<Vec<_>, _>>()?;
    for (at, one) in all.iter().enumerate() {
        let range = |start: u32, size: u32| IdRange { outside: start, count: size };
        let twice = all[..at].iter().any(|other| {
            range(one.container_id(), one.size()).overlaps(range(other.container_id(), other.size()))
                || range(one.host_id(), one.size()).overlaps(range(other.host_id(), other.size()))
        });
        if twice {
            return Err(invalid(field, place, "two lines map the same id"));
        }
    }
    Ok(all)
}

fn check_line(field: &'static str, mapping: &cri::IdMapping) -> Result<LinuxIdMapping, SpecError> {
    // The highest number means "nobody" to the kernel and cannot be mapped.
    let fits = |start: u32| start.checked_add(mapping.length).is_some();
    if mapping.length == 0 {
        return Err(invalid(field, &shown(mapping), "the mapping is empty"));
    }
    if !fits(mapping.container_id) || !fits(mapping.host_id) {
        return Err(invalid(field, &shown(mapping), "the mapping goes beyond the highest id"));
    }
    Ok(line(mapping.container_id, mapping.host_id, mapping.length))
}

fn line(inside: u32, outside: u32, count: u32) -> LinuxIdMapping {
    let line = LinuxIdMappingBuilder::default().container_id(inside).host_id(outside).size(count);
    // It fails for a missing field only.
    line.build().unwrap_or_default()
}

fn shown(mapping: &cri::IdMapping) -> String {
    format!("{}:{}:{}", mapping.container_id, mapping.host_id, mapping.length)
}

fn invalid(field: &'static str, value: &str, why: &'static str) -> SpecError {
    SpecError::Invalid { field, value: value.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(container_id: u32, host_id: u32, length: u32) -> cri::IdMapping {
        cri::IdMapping { host_id, container_id, length }
    }

    fn asked(mode: NamespaceMode, ids: &[cri::IdMapping]) -> Result<Option<UserNamespace>, SpecError> {
        UserNamespace::of(&cri::NamespaceOption {
            userns_options: Some(cri::UserNamespace {
                mode: mode.into(),
                uids: ids.to_vec(),
                gids: ids.to_vec(),
            }),
            ..Default::default()
        })
    }

    #[test]
    fn a_pod_has_one_range_or_the_nodes_users() {
        let pod = asked(NamespaceMode::Pod, &[mapping(0, 1000, 100_000)]).unwrap().unwrap();
        assert_eq!(pod.uids, IdRange { outside: 1000, count: 100_000 });
        assert_eq!((pod.gids.outside_of(5), pod.gids.outside_of(100_000)), (Some(1005), None));
        assert_eq!(asked(NamespaceMode::Node, &[]).unwrap(), None);
        assert_eq!(UserNamespace::of(&cri::NamespaceOption::default()).unwrap(), None);
        for (mode, ids) in [
            (NamespaceMode::Pod, vec![]),
            (NamespaceMode::Pod, vec![mapping(0, 1000, 10), mapping(10, 2000, 10)]),
            (NamespaceMode::Pod, vec![mapping(1, 1000, 10)]),
            (NamespaceMode::Pod, vec![mapping(0, 0, 65536)]),
            (NamespaceMode::Pod, vec![mapping(0, 1000, 0)]),
            (NamespaceMode::Pod, vec![mapping(0, 4_294_967_000, 65536)]),
            (NamespaceMode::Node, vec![mapping(0, 1000, 10)]),
            (NamespaceMode::Container, vec![]),
            (NamespaceMode::Target, vec![]),
        ] {
            assert!(asked(mode, &ids).is_err(), "{mode:?} {ids:?}");
        }
    }

    #[test]
    fn a_process_has_numbers_that_its_pod_holds() {
        let pod = asked(NamespaceMode::Pod, &[mapping(0, 1000, 10)]).unwrap();
        assert!(check_mapped(pod, 9, &[0, 9]).is_ok() && check_mapped(None, 70_000, &[70_000]).is_ok());
        assert!(check_mapped(pod, 10, &[0]).is_err() && check_mapped(pod, 0, &[0, 10]).is_err());
    }

    #[test]
    fn ranges_that_share_an_id_overlap() {
        let pod = |start, count| asked(NamespaceMode::Pod, &[mapping(0, start, count)]).unwrap().unwrap();
        assert!(pod(1000, 100).overlaps(pod(1099, 1)) && pod(1000, 1).overlaps(pod(500, 501)));
        assert!(!pod(1000, 100).overlaps(pod(1100, 5)));
        // The last range there is.
        assert!(!pod(4_294_901_759, 65536).overlaps(pod(1, 1)));
    }

    #[test]
    fn a_mount_maps_users_and_groups_together() {
        let mount = |uids: &[cri::IdMapping], gids: &[cri::IdMapping]| {
            of_mount(&cri::Mount {
                uid_mappings: uids.to_vec(),
                gid_mappings: gids.to_vec(),
                ..Default::default()
            })
        };
        assert!(mount(&[], &[]).unwrap().is_none());
        let two = [mapping(0, 1000, 10), mapping(10, 5000, 1)];
        assert_eq!(mount(&two, &two).unwrap().unwrap().0.len(), 2);
        assert!(mount(&two, &[]).is_err() && mount(&[], &two).is_err());
        let twice = [mapping(0, 1000, 10), mapping(9, 5000, 1)];
        assert!(mount(&twice, &twice).is_err());
        let many: Vec<_> = (0..341).map(|n| mapping(n, 1000 + n, 1)).collect();
        assert!(mount(&many, &many).is_err());
    }
}
