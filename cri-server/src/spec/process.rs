//! The process of a container: what is executed, where and as whom.

use std::path::{Path, PathBuf};

use cofferdam_proto::cri;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{Process, Spec, User};

use super::error::SpecError;
use super::user::ResolvedUser;

fn of_image<'a>(
    image: &'a ImageConfiguration,
    field: impl Fn(&'a oci_spec::image::Config) -> &'a Option<Vec<String>>,
) -> &'a [String] {
    image.config().as_ref().and_then(|config| field(config).as_deref()).unwrap_or_default()
}

/// The image's environment.
#[must_use]
pub fn image_env(image: &ImageConfiguration) -> &[String] {
    of_image(image, oci_spec::image::Config::env)
}

/// What is executed. Kubernetes' `command` takes the place of the image's ENTRYPOINT *and* CMD, its `args` only of CMD.
///
/// # Errors
/// When nothing is left to execute.
pub fn args(config: &cri::ContainerConfig, image: &ImageConfiguration) -> Result<Vec<String>, SpecError> {
    let entrypoint = of_image(image, oci_spec::image::Config::entrypoint);
    let cmd = of_image(image, oci_spec::image::Config::cmd);
    // Builders write [""] to say "no entrypoint".
    let entrypoint = if entrypoint == [""] { &[] } else { entrypoint };
    let (command, args) = match (config.command.as_slice(), config.args.as_slice()) {
        ([], []) => (entrypoint, cmd),
        ([], args) => (entrypoint, args),
        (command, args) => (command, args),
    };
    let all: Vec<String> = command.iter().chain(args).cloned().collect();
    if let Some(bad) = all.iter().find(|arg| arg.contains('\0')) {
        return Err(SpecError::Invalid {
            field: "argument",
            value: bad.clone(),
            why: "it holds a zero byte",
        });
    }
    match all.first().map(String::as_str) {
        None | Some("") => Err(SpecError::NoCommand),
        Some(_) => Ok(all),
    }
}

/// Where it starts: the request's folder, else the image's, else the root.
///
/// # Errors
/// When the request's folder is not absolute.
pub fn cwd(config: &cri::ContainerConfig, image: &ImageConfiguration) -> Result<PathBuf, SpecError> {
    if !config.working_dir.is_empty() {
        if !Path::new(&config.working_dir).is_absolute() {
            return Err(SpecError::Invalid {
                field: "working_dir",
                value: config.working_dir.clone(),
                why: "the path is not absolute",
            });
        }
        return Ok(PathBuf::from(&config.working_dir));
    }
    let of_image = image.config().as_ref().and_then(|config| config.working_dir().as_deref()).unwrap_or("");
    // Images are not checked by anyone: a relative folder is meant from the root.
    Ok(Path::new("/").join(of_image))
}

/// The spec's form of a user.
#[must_use]
pub fn user(resolved: &ResolvedUser) -> User {
    let mut user = User::default();
    user.set_uid(resolved.uid);
    user.set_gid(resolved.gid);
    user.set_additional_gids(Some(resolved.additional_gids.clone()).filter(|gids| !gids.is_empty()));
    user.set_umask(None);
    user.set_username(None);
    user
}

/// The process of an exec: that of the container, with another command. It has the container's user, environment,
/// capabilities and profiles.
///
/// # Errors
/// When there is no command, or `container` is no container's spec.
pub fn exec_process(container: &Spec, command: &[String], tty: bool) -> Result<Process, SpecError> {
    let mut process =
        container.process().clone().ok_or(SpecError::Missing("process in the container's spec"))?;
    match command.first().map(String::as_str) {
        None | Some("") => return Err(SpecError::NoCommand),
        Some(_) => process.set_args(Some(command.to_vec())),
    };
    process.set_terminal(Some(tty));
    let env = process.env_mut().get_or_insert_default();
    if tty && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    Ok(process)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::image;
    use super::*;

    fn owned(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn command_and_args_follow_kubernetes() {
        type Words = &'static [&'static str];
        let table: [(Words, Words, Words, Words, Option<Words>); 9] = [
            (&["/ep"], &["c"], &[], &[], Some(&["/ep", "c"])),
            (&["/ep"], &["c"], &[], &["a"], Some(&["/ep", "a"])),
            (&["/ep"], &["c"], &["cmd"], &[], Some(&["cmd"])),
            (&["/ep"], &["c"], &["cmd"], &["a"], Some(&["cmd", "a"])),
            (&[], &["sh"], &[], &[], Some(&["sh"])),
            (&[""], &["sh"], &[], &[], Some(&["sh"])),
            (&[], &[], &[], &["a"], Some(&["a"])),
            (&[], &[], &[], &[], None),
            (&[], &[""], &[], &[], None),
        ];
        for (entrypoint, cmd, command, args_given, expected) in table {
            let image = image(&serde_json::json!({"Entrypoint": entrypoint, "Cmd": cmd}));
            let config = cri::ContainerConfig {
                command: owned(command),
                args: owned(args_given),
                ..Default::default()
            };
            let built = args(&config, &image).ok();
            assert_eq!(built, expected.map(owned), "{entrypoint:?} {cmd:?} {command:?} {args_given:?}");
        }
        let none = args(&cri::ContainerConfig::default(), &ImageConfiguration::default()).unwrap_err();
        assert!(none.to_string().starts_with("no command specified"));
    }

    #[test]
    fn an_exec_is_the_container_with_another_command() {
        let mut spec = Spec::default();
        let mut process = Process::default();
        process.set_args(Some(owned(&["/app"]))).set_env(Some(owned(&["A=b"]))).set_cwd("/srv".into());
        spec.set_process(Some(process));
        let exec = exec_process(&spec, &owned(&["sh", "-c", "x"]), true).unwrap();
        assert_eq!(exec.args().as_deref(), Some(&owned(&["sh", "-c", "x"])[..]));
        assert_eq!(exec.env().as_deref(), Some(&owned(&["A=b", "TERM=xterm"])[..]));
        assert_eq!((exec.cwd().as_path(), exec.terminal()), (Path::new("/srv"), Some(true)));
        let plain = exec_process(&spec, &owned(&["true"]), false).unwrap();
        assert_eq!(plain.env().as_deref(), Some(&owned(&["A=b"])[..]));
        assert!(matches!(exec_process(&spec, &[], false), Err(SpecError::NoCommand)));
    }

    #[test]
    fn the_working_folder_is_always_absolute() {
        let config = |dir: &str| cri::ContainerConfig { working_dir: dir.to_owned(), ..Default::default() };
        let with = image(&serde_json::json!({"WorkingDir": "srv"}));
        assert_eq!(cwd(&config(""), &with).unwrap(), Path::new("/srv"));
        assert_eq!(cwd(&config("/x"), &with).unwrap(), Path::new("/x"));
        assert_eq!(cwd(&config(""), &ImageConfiguration::default()).unwrap(), Path::new("/"));
        assert!(cwd(&config("x"), &with).is_err());
    }
}
