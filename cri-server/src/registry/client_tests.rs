//! Tables for the parts of the client that need no server.

use super::*;

const INDEX: &str = MANIFEST_TYPES[0];
const MANIFEST: &str = MANIFEST_TYPES[1];

#[test]
fn media_types_of_header_and_body_must_agree() {
    let inside = format!(r#"{{"mediaType":"{MANIFEST}"}}"#);
    let with_charset = format!("{MANIFEST}; charset=utf-8");
    for (header, body, expected) in [
        (Some(MANIFEST), inside.as_str(), Ok(MANIFEST)),
        (Some(with_charset.as_str()), inside.as_str(), Ok(MANIFEST)),
        (Some(MANIFEST), "{}", Ok(MANIFEST)),
        (None, inside.as_str(), Ok(MANIFEST)),
        (Some("text/plain"), inside.as_str(), Ok(MANIFEST)),
        (Some(INDEX), inside.as_str(), Err("another media type")),
        (Some(INDEX), "not json", Err("no JSON")),
        (None, "{}", Err("not supported")),
        (Some("application/vnd.docker.distribution.manifest.v1+prettyjws"), "{}", Err("v1+prettyjws")),
    ] {
        let result = manifest_type("h", header, body.as_bytes()).map_err(|error| error.to_string());
        match (result, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
            (result, _) => panic!("{header:?} {body}: {result:?}"),
        }
    }
}

#[test]
fn waits_double_are_bounded_and_never_shorter_than_asked() {
    let registry = Registry::new(RegistryConfig::default());
    assert!(registry.wait(1, None) < registry.wait(4, None));
    assert!(registry.wait(99, None) <= MAX_WAIT);
    assert!(registry.wait(1, Some(Duration::from_secs(5))) >= Duration::from_secs(5));
    assert_eq!(registry.wait(1, Some(Duration::from_secs(1 << 40))), MAX_WAIT);
}
