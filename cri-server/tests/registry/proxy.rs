//! The proxy of the environment. The variables are read once per process, so a child process has the test's.

use std::process::{Command, Output};

use cofferdam::registry::{Credentials, Reference, Registry};

use crate::fake::Server;
use crate::{config, sound};

/// Reserved for names that never resolve.
const DOMAIN: &str = "registry.invalid:80";

fn pull_in_child(environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "proxy::child_pulls"]);
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command.env("PULL_FROM", DOMAIN).envs(environment.iter().copied()).output().unwrap()
}

/// What the children of the test below run; in the process of the tests it has nothing to do.
#[tokio::test]
async fn child_pulls() {
    let Ok(domain) = std::env::var("PULL_FROM") else { return };
    let mut config = config(None);
    config.rounds = 1;
    let reference = Reference::parse(&format!("{domain}/team/app:v1")).unwrap();
    Registry::new(config).resolve(&reference, &Credentials::anonymous()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_of_the_environment_is_used_but_for_its_exceptions_and_loopback() {
    let proxy = Server::start(|request| {
        let mut asked = request.clone();
        asked.path = asked.path.replace("http://registry.invalid", "");
        sound(&asked, b"")
    })
    .await;
    let url = format!("http://{}", proxy.address);
    let output = tokio::task::block_in_place(|| pull_in_child(&[("http_proxy", &url)]));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(proxy.requests().len(), 1);
    let output = tokio::task::block_in_place(|| {
        pull_in_child(&[("http_proxy", &url), ("no_proxy", "registry.invalid")])
    });
    assert!(!output.status.success());
    assert_eq!(proxy.requests().len(), 1);

    let local = Server::start(|request| sound(request, b"")).await;
    let output = tokio::task::block_in_place(|| {
        pull_in_child(&[("http_proxy", &url), ("https_proxy", &url), ("PULL_FROM", &local.domain())])
    });
    assert!(output.status.success(), "{output:?}");
    assert_eq!((proxy.requests().len(), local.requests().len()), (1, 1));
}
