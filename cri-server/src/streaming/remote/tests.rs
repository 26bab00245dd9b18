//! Sessions end to end over an in-memory connection, with small clients of both transports.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::super::link::LinkError;
use super::super::spdy::client::{Client as SpdyClient, Deflater, data};
use super::super::websocket::client::{Client as WebSocketClient, put_frame};
use super::negotiate::{Coding, CommandVersion};
use super::*;

const ALL: Streams = Streams { stdin: true, stdout: true, stderr: true, tty: false };

fn ends() -> (DuplexStream, DuplexStream) {
    duplex(16 * 1024)
}

fn quick() -> Limits {
    Limits {
        creation: Duration::from_millis(200),
        idle: Duration::from_secs(60),
        pairing: Duration::from_millis(50),
    }
}

async fn spdy_session(want: Streams, types: &[&str]) -> (SpdyClient<DuplexStream>, CommandSession) {
    let (near, far) = ends();
    let open = tokio::spawn(spdy_command(far, CommandVersion::V4, want, quick()));
    let mut client = SpdyClient::new(near);
    for (number, kind) in types.iter().enumerate() {
        client.open(2 * number as u32 + 1, &[("streamtype", kind)]).await;
    }
    (client, open.await.unwrap().unwrap())
}

#[tokio::test]
async fn a_command_over_spdy_gets_input_gives_output_and_the_status_last() {
    let (mut client, session) = spdy_session(ALL, &["error", "stdin", "stdout", "stderr"]).await;
    client.send(3, true, b"some input").await;
    let CommandSession { stdin, stdout, stderr, status, .. } = session;
    let mut text = String::new();
    stdin.unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "some input");
    // More than all buffers together: the writer waits for the client, who gets every byte.
    let work = tokio::spawn(async move {
        let mut stdout = stdout.unwrap();
        for number in 0..400u32 {
            stdout.write_all(&[number as u8; 10_000]).await.unwrap();
        }
        drop((stdout, stderr));
        status.finish(Outcome::ExitCode(7)).await
    });
    let (output, ended) = client.rest(5).await;
    assert_eq!(output.len(), 4_000_000);
    assert!(
        output
            .chunks(10_000)
            .enumerate()
            .all(|(number, piece)| piece.iter().all(|byte| *byte == number as u8))
    );
    assert_eq!(ended.last(), Some(&1), "the error stream ends last: {ended:?}");
    assert_eq!(ended.len(), 4);
    drop(client);
    work.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_status_arrives_over_spdy() {
    let (mut client, session) =
        spdy_session(Streams { stdout: true, ..Streams::default() }, &["error", "stdout"]).await;
    let finish = tokio::spawn(session.status.finish(Outcome::Failure("no such container".into())));
    let (status, _) = client.rest(1).await;
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    assert_eq!(
        (status["status"].as_str(), status["message"].as_str()),
        (Some("Failure"), Some("no such container"))
    );
    drop(client);
    finish.await.unwrap().unwrap();
}

#[tokio::test]
async fn sizes_arrive_and_the_clients_end_is_the_end_of_sizes() {
    let want = Streams { stdin: true, stdout: true, stderr: true, tty: true };
    let (mut client, mut session) = spdy_session(want, &["error", "stdin", "stdout", "resize"]).await;
    assert!(session.stderr.is_none(), "a terminal has one output");
    client.send(7, false, br#"{"Width":100,"Height":50}"#).await;
    assert_eq!(session.resize.recv().await, Some(TerminalSize { width: 100, height: 50 }));
    drop(client);
    assert_eq!(session.resize.recv().await, None);
}

#[tokio::test]
async fn a_client_that_vanishes_ends_every_half() {
    let (client, mut session) = spdy_session(ALL, &["error", "stdin", "stdout", "stderr"]).await;
    let gone = session.status.gone();
    drop(client);
    gone.cancelled().await;
    assert!(session.stdin.unwrap().read_u8().await.is_err());
    let mut stdout = session.stdout.take().unwrap();
    while stdout.write_all(&[0; 1000]).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert_eq!(session.status.finish(Outcome::Success).await, Err(LinkError::Gone));
}

#[tokio::test]
async fn a_dropped_session_cuts_the_connection() {
    let (mut client, session) = spdy_session(ALL, &["error", "stdin", "stdout", "stderr"]).await;
    let CommandSession { stdin, status, .. } = session;
    drop(status);
    assert!(stdin.unwrap().read_u8().await.is_err());
    assert!(client.next().await.is_none());
}

#[tokio::test]
async fn missing_streams_are_named_after_a_while() {
    let (near, far) = ends();
    let open = tokio::spawn(spdy_command(far, CommandVersion::V4, ALL, quick()));
    let mut client = SpdyClient::new(near);
    client.open(1, &[("streamtype", "error")]).await;
    client.open(3, &[("streamtype", "stdin")]).await;
    let Err(error) = open.await.unwrap() else { panic!("a session without its streams") };
    assert!(error.to_string().contains("stdout, stderr"), "{error}");
}

#[tokio::test]
async fn an_idle_connection_is_left() {
    let (near, far) = ends();
    let limits = Limits { idle: Duration::from_millis(50), ..Limits::default() };
    let session = websocket_command(far, CommandVersion::V5, Coding::Binary, ALL, limits);
    session.status.gone().cancelled().await;
    let idle = Err(LinkError::Idle(limits.idle));
    drop(near);
    assert_eq!(session.status.finish(Outcome::Success).await, idle);
}

#[tokio::test]
async fn a_command_over_websocket_runs_in_every_coding() {
    for (version, coding, input, output) in [
        (CommandVersion::V5, Coding::Binary, &b"\0in"[..], &b"\x01out"[..]),
        (CommandVersion::V4, Coding::Base64, b"0aW4=", b"1b3V0"),
    ] {
        let (near, far) = ends();
        let mut client = WebSocketClient::new(near);
        let mut session = websocket_command(far, version, coding, ALL, quick());
        assert_eq!(client.next().await.unwrap().1.len(), 1, "the greeting names a channel");
        client.send(2, input).await;
        let mut read = [0; 2];
        session.stdin.as_mut().unwrap().read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"in");
        session.stdout.as_mut().unwrap().write_all(b"out").await.unwrap();
        assert_eq!(&client.next().await.unwrap().1[..], output);
        let finish = tokio::spawn(session.status.finish(Outcome::Success));
        let (_, status) = client.next().await.unwrap();
        assert_eq!(status[0], if coding == Coding::Base64 { b'3' } else { 3 });
        assert_eq!(client.next().await.unwrap().0, 8, "then the connection closes");
        drop(client);
        finish.await.unwrap().unwrap();
    }
}

const DATA: [(&str, &str); 3] = [("streamtype", "data"), ("port", "80"), ("requestid", "0")];
const ERROR: [(&str, &str); 3] = [("streamtype", "error"), ("port", "80"), ("requestid", "0")];

#[tokio::test]
async fn a_forward_over_spdy_keeps_half_close() {
    let (near, far) = ends();
    let (mut client, mut session) = (SpdyClient::new(near), spdy_forward(far, quick()));
    client.open(1, &ERROR).await;
    client.open(3, &DATA).await;
    let mut forward = session.next().await.unwrap();
    assert_eq!((forward.port, forward.request_id.as_str()), (80, "0"));
    client.send(3, true, b"request").await;
    let mut text = String::new();
    forward.data.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "request");
    // The client ended its direction; ours still works.
    forward.data.write_all(b"response").await.unwrap();
    drop(forward);
    let mut got = Vec::new();
    while let Some(frame) = client.next().await {
        if let super::super::spdy::Frame::Data { id: 3, fin, data } = frame {
            got.extend_from_slice(&data);
            if fin {
                break;
            }
        }
    }
    assert_eq!(got, b"response");
    drop(client);
    assert!(session.next().await.is_none());
}

#[tokio::test]
async fn half_a_connection_is_reset_after_a_while_and_others_are_not_held_up() {
    let (near, far) = ends();
    let (mut client, mut session) = (SpdyClient::new(near), spdy_forward(far, quick()));
    client.open(1, &[("streamtype", "data"), ("port", "81"), ("requestid", "9")]).await;
    client.open(3, &DATA).await;
    client.open(5, &ERROR).await;
    assert_eq!(session.next().await.unwrap().port, 80);
    let waiting = tokio::spawn(async move { session.next().await.is_none() });
    let mut reset = Vec::new();
    while !reset.contains(&1) {
        if let Some(super::super::spdy::Frame::RstStream { id, .. }) = client.next().await {
            reset.push(id);
        }
    }
    drop(client);
    assert!(waiting.await.unwrap());
}

#[tokio::test]
async fn streams_without_a_port_are_refused() {
    let (near, far) = ends();
    let (mut client, _session) = (SpdyClient::new(near), spdy_forward(far, quick()));
    for (number, headers) in
        [vec![("streamtype", "data")], vec![("streamtype", "data"), ("port", "0")], vec![("port", "80")]]
            .iter()
            .enumerate()
    {
        let id = 2 * number as u32 + 1;
        client.syn(id, headers).await;
        let frame = client.next().await;
        assert_eq!(frame, Some(super::super::spdy::Frame::RstStream { id, status: 3 }));
    }
}

#[tokio::test]
async fn a_thousand_connections_pass_through_one_session() {
    let (near, far) = ends();
    let mut session = spdy_forward(far, Limits::default());
    let echo = tokio::spawn(async move {
        let mut tasks = tokio::task::JoinSet::new();
        while let Some(forward) = session.next().await {
            tasks.spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(forward.data);
                tokio::io::copy(&mut reader, &mut writer).await.unwrap();
                writer.shutdown().await.unwrap();
            });
            while tasks.try_join_next().is_some() {}
        }
        while tasks.join_next().await.is_some() {}
    });
    let mut client = SpdyClient::new(near);
    for number in 0..1000u32 {
        let (id, request) = (4 * number + 1, number.to_string());
        client.open(id, &[("streamtype", "error"), ("port", "80"), ("requestid", &request)]).await;
        client.send(id, true, b"").await;
        client.syn(id + 2, &[("streamtype", "data"), ("port", "80"), ("requestid", &request)]).await;
        client.send(id + 2, true, request.as_bytes()).await;
        let mut got = Vec::new();
        loop {
            match client.next().await.unwrap() {
                super::super::spdy::Frame::Data { id: from, fin, data } if from == id + 2 => {
                    got.extend_from_slice(&data);
                    if fin {
                        break;
                    }
                }
                _ => {}
            }
        }
        assert_eq!(got, request.as_bytes());
    }
    drop(client);
    echo.await.unwrap();
}

#[tokio::test]
async fn a_forward_over_websocket_begins_with_the_port() {
    let (near, far) = ends();
    let (mut client, mut session) =
        (WebSocketClient::new(near), websocket_forward(far, Coding::Binary, &[8080, 53], quick()));
    let mut greetings = Vec::new();
    for _ in 0..4 {
        greetings.push(client.next().await.unwrap().1.to_vec());
    }
    assert_eq!(greetings, [vec![0, 0x90, 0x1f], vec![1, 0x90, 0x1f], vec![2, 53, 0], vec![3, 53, 0]]);
    let (_first, mut second) = (session.next().await.unwrap(), session.next().await.unwrap());
    assert_eq!(second.port, 53);
    client.send(2, b"\x02question").await;
    let mut read = [0; 8];
    second.data.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"question");
    second.error.write_all(b"refused").await.unwrap();
    assert_eq!(&client.next().await.unwrap().1[..], b"\x03refused");
    client.send(8, b"").await;
    assert!(session.next().await.is_none());
}

#[tokio::test]
async fn spdy_passes_through_the_tunnel() {
    let (near, far) = ends();
    let (mut client, mut session) = (WebSocketClient::new(near), tunnel_forward(far, quick()));
    let (mut spdy, mut deflater, mut wire) = (BytesMut::new(), Deflater::default(), BytesMut::new());
    deflater.syn(&mut spdy, 1, 0, &ERROR);
    deflater.syn(&mut spdy, 3, 0, &DATA);
    data(&mut spdy, 3, true, b"through");
    // Messages have no borders that count.
    for piece in spdy.chunks(11) {
        put_frame(&mut wire, true, 2, piece);
    }
    client.io.write_all(&wire).await.unwrap();
    let mut forward = session.next().await.unwrap();
    let mut text = String::new();
    forward.data.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "through");
    forward.data.write_all(b"back").await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"back") {
        let (code, message) = client.next().await.unwrap();
        assert_eq!(code, 2);
        got.extend_from_slice(&message);
    }
    drop(session);
    assert!(client.next().await.is_none());
    assert!(forward.data.write_all(b"x").await.is_err());
}
