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
fn retry_after_is_seconds_or_a_date() {
    let parse = |text: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, text.parse().unwrap());
        retry_after(&headers)
    };
    assert_eq!(parse("7"), Some(Duration::from_secs(7)));
    assert_eq!(parse("soon"), None);
    assert_eq!(parse("-1"), None);
    assert_eq!(parse("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
    let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(30));
    assert!(parse(&later).is_some_and(|wait| wait > Duration::from_secs(20)));
}

#[test]
fn waits_double_are_bounded_and_never_shorter_than_asked() {
    let registry = Registry::new(RegistryConfig::default());
    assert!(registry.wait(1, None) < registry.wait(4, None));
    assert!(registry.wait(99, None) <= MAX_WAIT);
    assert!(registry.wait(1, Some(Duration::from_secs(5))) >= Duration::from_secs(5));
    assert_eq!(registry.wait(1, Some(Duration::from_secs(1 << 40))), MAX_WAIT);
}

#[test]
fn mirrors_are_told_the_registry_and_registries_are_not() {
    let url = |domain: &str, hosts_toml: &str| {
        let reference = Reference::parse(&format!("{domain}/a/b")).unwrap();
        let credentials = super::super::Credentials::anonymous();
        let path = "manifests/latest".to_owned();
        let ask = Ask {
            reference: &reference,
            credentials: &credentials,
            path,
            headers: HeaderMap::new(),
            pinned: false,
        };
        let hosts = hosts::parse(hosts_toml, std::path::Path::new("/x"), domain).unwrap();
        ask_url(&hosts[0], &ask).unwrap().to_string()
    };
    for (domain, text, expected) in [
        ("docker.io", "", "https://registry-1.docker.io/v2/a/b/manifests/latest"),
        ("reg.example:443", "", "https://reg.example/v2/a/b/manifests/latest"),
        ("docker.io", "[host.\"https://m/x\"]", "https://m/x/v2/a/b/manifests/latest?ns=docker.io"),
        (
            "r.example:5000",
            "[host.\"https://m/x\"]\noverride_path = true",
            "https://m/x/a/b/manifests/latest?ns=r.example%3A5000",
        ),
    ] {
        assert_eq!(url(domain, text), expected);
    }
}
