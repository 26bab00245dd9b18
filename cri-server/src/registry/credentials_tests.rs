//! Who gets which secret, and that none is printed.

use std::path::Path;

use super::super::hosts_toml;
use super::*;

const MIRRORED: &str = r#"
server = "https://upstream.example:8443"
[host."https://mirror.example"]
"#;

fn fields(server_address: &str) -> AuthFields<'_> {
    AuthFields { username: "user", password: "geheim", server_address, ..AuthFields::default() }
}

fn hosts_of(domain: &str, text: &str) -> Vec<Host> {
    hosts_toml::parse(text, Path::new("/x/hosts.toml"), domain).unwrap()
}

#[test]
fn secrets_are_for_the_host_they_are_meant_for() {
    let docker_mirror = "[host.\"https://mirror.example\"]";
    for (server, domain, text, mirror, upstream) in [
        ("", "reg.example", MIRRORED, false, true),
        ("reg.example", "reg.example", MIRRORED, false, true),
        ("https://REG.example:443/v1/", "reg.example", MIRRORED, false, true),
        ("other.example", "reg.example", MIRRORED, false, false),
        ("mirror.example", "reg.example", MIRRORED, true, false),
        ("upstream.example:8443", "reg.example", MIRRORED, false, true),
        ("upstream.example", "reg.example", MIRRORED, false, false),
        ("", "docker.io", docker_mirror, false, true),
        ("https://index.docker.io/v1/", "docker.io", docker_mirror, false, true),
        ("registry-1.docker.io", "docker.io", docker_mirror, false, true),
        ("docker.io.evil.example", "docker.io", docker_mirror, false, false),
    ] {
        let credentials = Credentials::from_fields(fields(server)).unwrap();
        let given: Vec<bool> = hosts_of(domain, text)
            .iter()
            .map(|host| *credentials.secret_for(host, domain, false) != Secret::Anonymous)
            .collect();
        assert_eq!(given, [mirror, upstream], "{server:?} for {domain}");
    }
}

#[test]
fn mirrors_get_the_secret_only_when_the_operator_trusts_them() {
    let hosts = hosts_of("reg.example", MIRRORED);
    let unnamed = Credentials::password("user", "geheim");
    assert_ne!(*unnamed.secret_for(&hosts[0], "reg.example", true), Secret::Anonymous);
    let named = Credentials::from_fields(fields("reg.example")).unwrap();
    assert_eq!(*named.secret_for(&hosts[0], "reg.example", true), Secret::Anonymous);
}

#[test]
fn fields_become_the_most_specific_secret() {
    let secret = |fields| Credentials::from_fields(fields).unwrap().secret;
    let password = |username: &str, password: &str| Secret::Password {
        username: username.to_owned(),
        password: password.to_owned(),
    };
    let none = AuthFields::default();
    assert!(secret(none) == Secret::Anonymous);
    // user:pa:ss, with and without padding, and with the zeros some writers leave.
    assert!(secret(AuthFields { auth: "dXNlcjpwYTpzcw==", ..none }) == password("user", "pa:ss"));
    assert!(secret(AuthFields { auth: "dXNlcjpwYTpzcw", ..none }) == password("user", "pa:ss"));
    assert!(secret(AuthFields { auth: "dXNlcjpwYTpzcwAA", ..none }) == password("user", "pa:ss"));
    let identity = |username: &str| Secret::Identity { username: username.to_owned(), token: "t".to_owned() };
    assert!(
        secret(AuthFields { username: "u", password: "p", identity_token: "t", ..none }) == identity("u")
    );
    assert!(secret(AuthFields { username: "<token>", password: "t", ..none }) == identity(""));
    let registry = secret(AuthFields { identity_token: "i", registry_token: "r", ..none });
    assert!(registry == Secret::Registry { token: "r".to_owned() });
}

#[test]
fn a_broken_auth_field_is_an_error_that_does_not_quote_it() {
    for auth in ["!geheim!", "Z2VoZWlt", "/////w=="] {
        let error = Credentials::from_fields(AuthFields { auth, ..AuthFields::default() }).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains("auth field") && !text.contains("geheim") && !text.contains(auth), "{text}");
    }
}

#[test]
fn secrets_are_not_printed() {
    let credentials = Credentials::password("user", "geheim");
    let header = basic_header("user", "geheim").unwrap();
    let text = format!("{credentials:?} {header:?} {:?}", bearer_header("geheim").unwrap());
    assert!(!text.contains("geheim") && !text.contains("Basic"), "{text}");
    assert!(basic_header("us:er", "geheim").is_err());
}

#[test]
fn fingerprints_tell_secrets_apart() {
    let print = |u: &str, p: &str| Credentials::password(u, p).secret.fingerprint();
    assert_ne!(print("ab", "c"), print("a", "bc"));
    assert_eq!(print("ab", "c"), print("ab", "c"));
}
