//! Tables for the folder layout.

use super::*;

fn bases(hosts: &[Host]) -> Vec<&str> {
    hosts.iter().map(|host| host.base.as_str()).collect()
}

#[test]
fn without_a_file_the_registry_itself_is_asked() {
    for (domain, base, fallback) in [
        ("docker.io", "https://registry-1.docker.io/v2", false),
        ("reg.example:5000", "https://reg.example:5000/v2", false),
        ("reg.example:80", "http://reg.example/v2", false),
        ("localhost", "https://localhost/v2", true),
        ("localhost:5000", "https://localhost:5000/v2", true),
        ("127.0.0.1:5000", "https://127.0.0.1:5000/v2", true),
        ("[::1]:5000", "https://[::1]:5000/v2", true),
        ("localhost:80", "http://localhost/v2", false),
        ("localhost.evil.example", "https://localhost.evil.example/v2", false),
    ] {
        let hosts = load(None, domain).unwrap();
        assert_eq!(bases(&hosts), [base]);
        assert_eq!(
            (hosts[0].plain_fallback, hosts[0].transport.skip_verify),
            (fallback, fallback),
            "{domain}"
        );
        assert!(hosts[0].upstream);
    }
}

#[test]
fn folders_are_found_by_each_of_their_names() {
    let root = tempfile::tempdir().unwrap();
    let write = |folder: &str, host: &str| {
        std::fs::create_dir_all(root.path().join(folder)).unwrap();
        std::fs::write(root.path().join(folder).join(FILE), format!("[host.\"https://{host}\"]")).unwrap();
    };
    let first = |domain: &str| load(Some(root.path()), domain).unwrap()[0].name();
    assert_eq!(first("a.example:5000"), "a.example:5000");
    write("_default", "default");
    assert_eq!(first("a.example:5000"), "default");
    write("a.example:5000", "colon");
    assert_eq!(first("a.example:5000"), "colon");
    write("a.example_5000_", "underscore");
    assert_eq!(first("a.example:5000"), "underscore");
    assert_eq!(first("a.example"), "default");
    write("[::1]_5000_", "six");
    assert_eq!(first("[::1]:5000"), "six");
}

#[test]
fn legacy_certificates_are_used_where_there_is_no_hosts_toml() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("localhost:5000");
    std::fs::create_dir(&folder).unwrap();
    for (name, text) in [("ca.crt", "CA"), ("me.cert", "CERT"), ("me.key", "KEY")] {
        std::fs::write(folder.join(name), text).unwrap();
    }
    let host = load(Some(root.path()), "localhost:5000").unwrap().remove(0);
    assert_eq!(host.transport.ca, [b"CA".to_vec()]);
    assert_eq!(host.transport.client.as_deref(), Some(b"CERT\nKEY".as_slice()));
    assert!(!host.plain_fallback && !host.transport.skip_verify);
    std::fs::remove_file(folder.join("me.key")).unwrap();
    let error = load(Some(root.path()), "localhost:5000").unwrap_err().to_string();
    assert!(error.contains("me.key: it is missing"), "{error}");
}
