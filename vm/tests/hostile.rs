//! A guest that was taken over: an agent that answers garbage, lies, tricks or not at all. Needs no machine.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cofferdam_proto::agent as proto;
use cofferdam_vm::agent::{Agent, AgentError, GuestSetup, VERSION};
use cofferdam_vm::channel::{self, Channel, Stream};
use tokio::io::{AsyncWriteExt, duplex};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::compat::TokioAsyncReadCompatExt;
use ttrpc::r#async::TtrpcContext;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

const DEADLINE: Duration = Duration::from_secs(5);

/// How the agent misbehaves.
#[derive(Clone, Copy, PartialEq)]
enum Trick {
    OtherVersion,
    ReleaseThatClearsTheScreen,
    ReleaseWithoutEnd,
    PathOfTheHost,
    NoAnswer,
    GarbageAfterTheGreeting,
    EndlessRefusal,
}

struct Hostile(Trick);

#[async_trait]
impl proto::Agent for Hostile {
    async fn hello(&self, _: &TtrpcContext, _: proto::HelloRequest) -> ttrpc::Result<proto::HelloResponse> {
        let (version, release) = match self.0 {
            Trick::OtherVersion => (VERSION + 1, "6.1".to_owned()),
            Trick::ReleaseThatClearsTheScreen => (VERSION, "\u{1b}[2J".to_owned()),
            Trick::ReleaseWithoutEnd => (VERSION, "6".repeat(1 << 20)),
            Trick::NoAnswer => std::future::pending().await,
            Trick::PathOfTheHost | Trick::GarbageAfterTheGreeting | Trick::EndlessRefusal => {
                (VERSION, "6.1".to_owned())
            }
        };
        Ok(proto::HelloResponse { version, kernel_release: release, ..Default::default() })
    }

    async fn set_up(&self, _: &TtrpcContext, _: proto::SetUpRequest) -> ttrpc::Result<proto::SetUpResponse> {
        let words = "no ".repeat(1 << 20);
        Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::INTERNAL, words)))
    }

    async fn put_bundle(
        &self,
        _: &TtrpcContext,
        r: proto::PutBundleRequest,
    ) -> ttrpc::Result<proto::PutBundleResponse> {
        let path = format!("/run/cofferdam/containers/../../../etc/{}", r.id);
        Ok(proto::PutBundleResponse { path, ..Default::default() })
    }
}

/// The host's end of a channel to such a guest.
async fn guest(trick: Trick) -> (Channel, JoinSet<()>, Server) {
    let (ours, theirs) = duplex(64 << 10);
    let (calls, waiting) = mpsc::channel::<Stream>(4);
    let listener = Listener::new(futures::stream::unfold(waiting, |mut waiting| async {
        waiting.recv().await.map(|stream| (Ok::<Stream, std::io::Error>(stream), waiting))
    }));
    let service = proto::create_agent(Arc::new(Hostile(trick)));
    let mut server = Server::new().add_listener(listener).register_service(service);
    server.start().await.unwrap();
    let mut tasks = JoinSet::new();
    let (channel, driver) = Channel::host(ours.compat());
    tasks.spawn(driver);
    tasks.spawn(async move {
        let mut streams = JoinSet::new();
        channel::guest(theirs.compat(), |mut stream| {
            let calls = calls.clone();
            streams.spawn(async move {
                channel::read_purpose(&mut stream).await.unwrap();
                channel::answer(&mut stream, Ok(())).await.unwrap();
                if trick == Trick::GarbageAfterTheGreeting {
                    while stream.write_all(&[0xff; 4096]).await.is_ok() {}
                } else {
                    drop(calls.send(stream).await);
                }
            });
        })
        .await;
    });
    (channel, tasks, server)
}

#[tokio::test]
async fn an_agent_that_lies_about_itself_is_not_greeted() {
    for trick in [Trick::OtherVersion, Trick::ReleaseThatClearsTheScreen, Trick::ReleaseWithoutEnd] {
        let (channel, _tasks, _server) = guest(trick).await;
        let error = Agent::greet(&channel, DEADLINE).await.expect_err("it is greeted");
        assert!(matches!(error, AgentError::Nonsense { .. }), "{error}");
        let words = error.to_string();
        assert!(words.len() < 200 && !words.contains('\u{1b}'), "{words}");
    }
}

#[tokio::test]
async fn a_path_that_leads_elsewhere_is_no_answer() {
    let (channel, _tasks, _server) = guest(Trick::PathOfTheHost).await;
    let (agent, _) = Agent::greet(&channel, DEADLINE).await.unwrap();
    let error = agent.put_bundle("passwd", Vec::new()).await.unwrap_err();
    assert!(matches!(error, AgentError::Nonsense { .. }) && !error.to_string().contains("etc"), "{error}");
}

#[tokio::test]
async fn an_agent_that_does_not_answer_is_given_up() {
    let (channel, _tasks, _server) = guest(Trick::NoAnswer).await;
    let error = Agent::greet(&channel, Duration::from_millis(300)).await.expect_err("it is greeted");
    assert!(matches!(error, AgentError::Silent { .. } | AgentError::Call { .. }), "{error}");
}

#[tokio::test]
async fn garbage_in_place_of_messages_is_an_error() {
    let (channel, _tasks, _server) = guest(Trick::GarbageAfterTheGreeting).await;
    let error = Agent::greet(&channel, DEADLINE).await.expect_err("it is greeted");
    assert!(matches!(error, AgentError::Silent { .. } | AgentError::Call { .. }), "{error}");
}

#[tokio::test]
async fn a_refusal_without_end_is_cut() {
    let (channel, _tasks, _server) = guest(Trick::EndlessRefusal).await;
    let (agent, _) = Agent::greet(&channel, DEADLINE).await.unwrap();
    let words = agent.set_up(&GuestSetup::default(), DEADLINE).await.unwrap_err().to_string();
    assert!(words.len() < 5000, "{} bytes", words.len());
}
