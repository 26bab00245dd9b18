//! Who is let in to the streaming server: tokens, and TLS with a certificate that is renewed while the daemon runs.

use std::path::{Path, PathBuf};

use cofferdam_tests::client::build;
use cofferdam_tests::client::stream::upgrade::{self, Url};
use cofferdam_tests::client::stream::{ERROR, Flags, STDOUT, Session, exit_code};
use cofferdam_tests::harness::cli::cofferdam;
use cofferdam_tests::harness::{Node, Pod};

const OUTPUT: Flags = Flags { stdin: false, tty: false };

async fn sleeper(node: &Node) -> (Pod, String) {
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("door")).await;
    let id = node.run_container(&pod, build::container("main", &image, &["sleep", "100000"])).await;
    (pod, id)
}

/// The answer to a request with SPDY's headers, without what differs from one second to the next.
async fn knock(node: &Node, url: &Url, method: &str, path: &str) -> String {
    let io = upgrade::connect(&node.netns, url, None).await.unwrap();
    let headers = [
        ("Connection", "Upgrade"),
        ("Upgrade", "SPDY/3.1"),
        ("X-Stream-Protocol-Version", "v4.channel.k8s.io"),
    ];
    let answer = upgrade::request(io, method, path, &headers).await;
    answer.head.lines().filter(|line| !line.to_ascii_lowercase().starts_with("date:")).collect()
}

#[tokio::test]
async fn a_request_without_a_valid_token_learns_nothing() {
    let node = Node::start().await;
    let (pod, id) = sleeper(&node).await;
    let text = node.cri.exec_url(&id, &["echo", "in"], OUTPUT).await.unwrap();
    let url = Url::parse(&text);
    let token = url.path.strip_prefix("/exec/").expect("a path that says what it is for").to_owned();
    let refused = knock(&node, &url, "POST", "/").await;
    assert!(refused.starts_with("HTTP/1.1 404"), "{refused}");
    let guess = "A".repeat(token.len());
    let paths = [
        format!("/exec/{guess}"),
        format!("/attach/{token}"),
        format!("/portforward/{token}"),
        format!("/exec/{token}/"),
        format!("/exec/{}", &token[..token.len() - 1]),
        format!("/exec/{id}"),
        "/exec/".to_owned(),
        "/metrics".to_owned(),
    ];
    for path in paths {
        for method in ["POST", "GET", "DELETE"] {
            assert_eq!(knock(&node, &url, method, &path).await, refused, "{method} {path}");
        }
    }
    // The token is still good after all that: once.
    let rest = Session::command(&node.netns, &text, None, OUTPUT).await.rest().await;
    assert_eq!((&rest[&STDOUT][..], exit_code(&rest[&ERROR])), (&b"in\n"[..], Ok(0)));
    assert_eq!(knock(&node, &url, "POST", &url.path).await, refused, "a token is good once");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

/// Writes a new certificate for the loopback and its key; gives the certificate's path.
fn renew(folder: &Path) -> PathBuf {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    // The key first: a certificate without its key is not taken, and both are looked at anew when either changes.
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    std::fs::write(&cert, made.cert.pem()).unwrap();
    cert
}

#[tokio::test]
async fn a_certificate_that_is_renewed_is_shown_and_the_operators_commands_know_it() {
    let folder = tempfile::tempdir().unwrap();
    let cert = renew(folder.path());
    let lines = format!(
        "tls_cert = \"{}\"\ntls_key = \"{}\"",
        cert.display(),
        folder.path().join("key.pem").display()
    );
    let Some(node) = Node::builder().config("streaming", &lines).start().await else { return };
    let (pod, id) = sleeper(&node).await;
    let said = async |authority: &Path, protocol| {
        let url = node.cri.exec_url(&id, &["echo", "safe"], OUTPUT).await.unwrap();
        assert!(url.starts_with("https://127.0.0.1:"), "{url}");
        let mut session =
            Session::command_trusting(&node.netns, &url, protocol, OUTPUT, Some(authority)).await;
        session.rest().await[&STDOUT].clone()
    };
    let ours = async || cofferdam(&node, &["exec", "-i", &id, "echo", "ours"]).await.expect_ok();
    let old = folder.path().join("old.pem");
    std::fs::copy(&cert, &old).unwrap();
    for protocol in [None, Some("v5.channel.k8s.io")] {
        assert_eq!(said(&cert, protocol).await, b"safe\n");
    }
    assert_eq!(ours().await, "ours\n");
    // An open session outlives the change.
    let url = node.cri.exec_url(&id, &["sh", "-c", "read go; echo $go"], Flags { stdin: true, tty: false });
    let flags = Flags { stdin: true, tty: false };
    let url = url.await.unwrap();
    let mut open = Session::command_trusting(&node.netns, &url, None, flags, Some(&cert)).await;
    std::thread::sleep(std::time::Duration::from_millis(20));
    renew(folder.path());
    assert_eq!(said(&cert, None).await, b"safe\n");
    assert_eq!(ours().await, "ours\n");
    open.send(0, b"still\n").await;
    assert_eq!(open.rest().await[&STDOUT], b"still\n");
    let url = Url::parse(&node.cri.exec_url(&id, &["true"], OUTPUT).await.unwrap());
    assert!(
        upgrade::connect(&node.netns, &url, Some(&old)).await.is_err(),
        "the old certificate is still shown"
    );
    // A broken file leaves what works.
    let good = folder.path().join("good.pem");
    std::fs::copy(&cert, &good).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    std::fs::write(&cert, "no certificate").unwrap();
    assert_eq!(said(&good, None).await, b"safe\n");
    assert_eq!(ours().await, "ours\n");
    node.destroy(&pod).await;
    node.assert_clean().await;
}
