//! Tables for hosts.toml.

use super::*;

const FILE: &str = "hosts.toml";

fn parsed(text: &str) -> Result<Vec<Host>, String> {
    parse(text, Path::new("/nonexistent/hosts.toml"), "reg.example").map_err(|error| error.to_string())
}

fn bases(hosts: &[Host]) -> Vec<&str> {
    hosts.iter().map(|host| host.base.as_str()).collect()
}

#[test]
fn hosts_keep_the_order_of_the_file_and_end_with_the_server() {
    let hosts = parsed(
        r#"
        server = "https://z.example"
        [host."https://m.example:5000"]
          capabilities = ["pull"]
        [host."http://a.example/some/path"]
          capabilities = ["pull", "resolve"]
        [host."b.example/v2/"]
          override_path = false
        [host."https://c.example/proxy/"]
          override_path = true
        "#,
    )
    .unwrap();
    assert_eq!(
        bases(&hosts),
        [
            "https://m.example:5000/v2",
            "http://a.example/some/path/v2",
            "https://b.example/v2",
            "https://c.example/proxy",
            "https://z.example/v2"
        ]
    );
    let pull: Vec<bool> = hosts.iter().map(|host| host.capabilities.pull).collect();
    let resolve: Vec<bool> = hosts.iter().map(|host| host.capabilities.resolve).collect();
    assert_eq!(pull, [true; 5]);
    assert_eq!(resolve, [false, true, true, true, true]);
    let upstream: Vec<bool> = hosts.iter().map(|host| host.upstream).collect();
    assert_eq!(upstream, [false, false, false, false, true]);
}

#[test]
fn keys_outside_of_hosts_are_the_servers() {
    let hosts = parsed("capabilities = [\"push\"]\nskip_verify = true\n[host.\"https://m\"]").unwrap();
    assert_eq!(bases(&hosts), ["https://m/v2", "https://reg.example/v2"]);
    assert!(!hosts[1].capabilities.pull && hosts[1].transport.skip_verify);
    assert!(hosts[0].capabilities.pull && !hosts[0].transport.skip_verify);
}

#[test]
fn headers_may_have_one_or_several_values_and_stay_secret() {
    let hosts = parsed("[host.\"https://m\".header]\nX-One = \"geheim\"\nX-Two = [\"a\", \"b\"]").unwrap();
    assert_eq!(hosts[0].headers["x-one"], "geheim");
    assert_eq!(hosts[0].headers.get_all("x-two").iter().count(), 2);
    assert!(!format!("{:?}", hosts[0]).contains("geheim"));
}

/// What was logged while a test ran.
#[derive(Clone, Default)]
struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn unknown_keys_are_named_in_a_warning_and_do_not_stop_a_pull() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, || {
        assert_eq!(parsed("new_key = 1\n[host.\"https://m\"]\nother = \"x\"").unwrap().len(), 2);
    });
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for part in ["new_key", "other", "https://m", "/nonexistent/hosts.toml", "WARN"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn wrong_values_name_file_and_key() {
    for (text, part) in [
        ("server = 1", "server"),
        ("host = 1", "host is no table"),
        ("[host]\nx = 1", "host.\"x\" is no table"),
        ("[host.\"ftp://m\"]", "http://host"),
        ("[host.\"https://user:geheim@m\"]", "a login does not belong here"),
        (
            "[host.\"https://m\"]\nskip_verify = \"yes\"",
            "host.\"https://m\".skip_verify: expected true or false",
        ),
        ("[host.\"https://m\"]\ncapabilities = [\"fly\"]", "none of pull, resolve, push"),
        ("[host.\"https://m\"]\nca = \"missing.pem\"", "/nonexistent/missing.pem does not exist"),
        ("[host.\"https://m\"]\nclient = [[\"a\", \"b\", \"c\"]]", "pairs of paths"),
        ("[host.\"https://m\"]\ndial_timeout = \"5\"", "dial_timeout: expected a duration"),
        ("[host.\"https://m\".header]\nx = \"a\\nb\"", "cannot carry"),
        ("x = ", "TOML"),
    ] {
        let error = parsed(text).expect_err(text);
        assert!(error.contains(part) && error.contains("/nonexistent/hosts.toml"), "{text}: {error}");
    }
}

#[test]
fn certificates_are_read_relative_to_the_file() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join(FILE);
    for name in ["a", "b"] {
        std::fs::write(root.path().join(name), name).unwrap();
    }
    for (value, expected) in [
        ("\"a\"", "a\n"),
        ("[\"a\", \"b\"]", "a\n"),
        ("[[\"a\", \"b\"]]", "a\nb\n"),
        ("[[\"b\", \"\"]]", "b\n"),
    ] {
        let text = format!("[host.\"https://m\"]\nca = [\"a\", \"b\"]\nclient = {value}");
        let hosts = parse(&text, &file, "reg.example").unwrap();
        assert_eq!(hosts[0].transport.client.as_deref(), Some(expected.as_bytes()), "{value}");
        assert_eq!(hosts[0].transport.ca.len(), 2);
        assert!(!format!("{:?}", hosts[0].transport).contains("97"), "no key bytes in Debug");
    }
}

#[test]
fn durations_are_gos() {
    for (text, millis) in [
        ("5s", Some(5_000)),
        ("1m30s", Some(90_000)),
        ("1.5s", Some(1_500)),
        ("200ms", Some(200)),
        ("1h", Some(3_600_000)),
        ("5", None),
        ("", None),
        ("0s", None),
        ("s", None),
        ("-1s", None),
        ("1y", None),
        ("99999999999999999999h", None),
    ] {
        assert_eq!(parse_duration(text), millis.map(Duration::from_millis), "{text}");
    }
}

#[test]
fn a_registry_that_is_named_twice_is_asked_once() {
    let text = "server = \"http://a:1\"\n[host.\"http://a:1\"]\ncapabilities = [\"pull\", \"resolve\"]\n[host.\"http://b\"]";
    let hosts = parsed(text).unwrap();
    assert_eq!(bases(&hosts), ["http://a:1/v2", "http://b/v2"]);
    assert!(hosts[0].upstream && !hosts[1].upstream);
    // Where the entry may do less, both are needed.
    let hosts = parsed("server = \"http://a:1\"\n[host.\"http://a:1\"]\ncapabilities = [\"pull\"]").unwrap();
    assert_eq!(bases(&hosts), ["http://a:1/v2", "http://a:1/v2"]);
}
