//! Tables for the parts of a request that need no server.

use super::*;

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
        let hosts = super::super::hosts_toml::parse(hosts_toml, std::path::Path::new("/x"), domain).unwrap();
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
