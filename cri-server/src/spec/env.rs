//! The environment of a container's process: defaults first, then the image's, then the request's, the last one wins.

use cofferdam_proto::cri;

use super::error::SpecError;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An ordered list of variables in which a later value takes the place of an earlier one.
#[derive(Default)]
struct Environment(Vec<(String, String)>);

impl Environment {
    fn set(&mut self, key: &str, value: &str) {
        match self.0.iter_mut().find(|(known, _)| known == key) {
            Some(entry) => value.clone_into(&mut entry.1),
            None => self.0.push((key.to_owned(), value.to_owned())),
        }
    }
}

fn invalid(value: String, why: &'static str) -> SpecError {
    SpecError::Invalid { field: "environment variable", value, why }
}

fn text(pair: &cri::KeyValue) -> Result<&str, SpecError> {
    if pair.key.is_empty() || pair.key.contains(['=', '\0']) {
        return Err(invalid(pair.key.clone(), "a name is not empty and has no '='"));
    }
    let value = std::str::from_utf8(&pair.value).map_err(|_| {
        invalid(pair.key.clone(), "its value is not UTF-8, which an OCI runtime spec cannot hold")
    })?;
    if value.contains('\0') {
        return Err(invalid(pair.key.clone(), "its value holds a zero byte"));
    }
    Ok(value)
}

/// The variables as `KEY=value`.
///
/// # Errors
/// When the request holds a name or a value that no process could be given.
pub fn build(
    hostname: &str,
    tty: bool,
    home: Option<&str>,
    image: &[String],
    request: &[cri::KeyValue],
) -> Result<Vec<String>, SpecError> {
    let mut env = Environment::default();
    env.set("PATH", DEFAULT_PATH);
    if tty {
        env.set("TERM", "xterm");
    }
    if !hostname.is_empty() {
        env.set("HOSTNAME", hostname);
    }
    if let Some(home) = home {
        env.set("HOME", home);
    }
    // An image's entry without a '=' means a variable that its builder had not set: there is nothing to pass on.
    for (key, value) in image.iter().filter_map(|entry| entry.split_once('=')) {
        if !key.is_empty() && !value.contains('\0') {
            env.set(key, value);
        }
    }
    for pair in request {
        env.set(&pair.key, text(pair)?);
    }
    Ok(env.0.into_iter().map(|(key, value)| format!("{key}={value}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(key: &str, value: &[u8]) -> cri::KeyValue {
        cri::KeyValue { key: key.to_owned(), value: value.to_vec() }
    }

    #[test]
    fn the_request_overrides_the_image_and_both_the_defaults() {
        let image = ["PATH=/bin".to_owned(), "A=image".to_owned(), "B=x=y".to_owned(), "BROKEN".to_owned()];
        let env =
            build("pod", true, Some("/home/u"), &image, &[pair("A", b"request"), pair("C", b"")]).unwrap();
        let expected =
            ["PATH=/bin", "TERM=xterm", "HOSTNAME=pod", "HOME=/home/u", "A=request", "B=x=y", "C="];
        assert_eq!(env, expected);
        assert_eq!(build("", false, None, &[], &[]).unwrap(), [format!("PATH={DEFAULT_PATH}")]);
    }

    #[test]
    fn names_and_values_that_no_process_can_have_are_refused() {
        for bad in [pair("", b"v"), pair("A=B", b"v"), pair("A", b"\xff"), pair("A", b"a\0b")] {
            assert!(build("h", false, None, &[], std::slice::from_ref(&bad)).is_err(), "{bad:?}");
        }
    }
}
