//! Tables of requests and what they are answered.

use super::*;

fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in list {
        map.append(*name, HeaderValue::from_static(value));
    }
    map
}

fn spdy_headers(protocols: &[&'static str]) -> HeaderMap {
    let mut map = headers(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")]);
    for protocol in protocols {
        map.append(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
    }
    map
}

fn websocket_headers(protocols: &[&'static str]) -> HeaderMap {
    let mut map = headers(&[
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ]);
    for protocol in protocols {
        map.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    map
}

#[test]
fn spdy_takes_the_clients_first_known_version() {
    let table: [(&[&str], CommandVersion, Option<&str>); 5] = [
        (&["v4.channel.k8s.io", "v3.channel.k8s.io"], CommandVersion::V4, Some("v4.channel.k8s.io")),
        (&["v9.channel.k8s.io", "v2.channel.k8s.io"], CommandVersion::V2, Some("v2.channel.k8s.io")),
        (&["v5.channel.k8s.io, v3.channel.k8s.io"], CommandVersion::V3, Some("v3.channel.k8s.io")),
        (&["channel.k8s.io"], CommandVersion::V1, Some("channel.k8s.io")),
        (&[], CommandVersion::V1, None),
    ];
    for (asked, version, named) in table {
        let agreed = command(&Method::POST, &spdy_headers(asked)).unwrap();
        assert_eq!(agreed.protocol, CommandProtocol::Spdy(version), "{asked:?}");
        assert_eq!(agreed.headers.get(STREAM_PROTOCOL).map(|value| value.to_str().unwrap()), named);
        assert_eq!(agreed.headers[UPGRADE], "SPDY/3.1");
    }
}

#[test]
fn websocket_takes_the_clients_first_known_protocol() {
    let table: [(&[&str], CommandVersion, Coding, Option<&str>); 5] = [
        (&["v5.channel.k8s.io"], CommandVersion::V5, Coding::Binary, Some("v5.channel.k8s.io")),
        (&["v4.base64.channel.k8s.io"], CommandVersion::V4, Coding::Base64, Some("v4.base64.channel.k8s.io")),
        (&["x, base64.channel.k8s.io"], CommandVersion::V1, Coding::Base64, Some("base64.channel.k8s.io")),
        (&["channel.k8s.io"], CommandVersion::V1, Coding::Binary, Some("channel.k8s.io")),
        (&[], CommandVersion::V1, Coding::Binary, None),
    ];
    for (asked, version, coding, named) in table {
        let agreed = command(&Method::GET, &websocket_headers(asked)).unwrap();
        assert_eq!(agreed.protocol, CommandProtocol::WebSocket(version, coding), "{asked:?}");
        assert_eq!(agreed.headers.get(SEC_WEBSOCKET_PROTOCOL).map(|value| value.to_str().unwrap()), named);
        // The example of RFC 6455, section 1.3.
        assert_eq!(agreed.headers[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}

#[test]
fn forwards_know_spdy_channels_and_the_tunnel() {
    let agreed = forward(&Method::POST, &spdy_headers(&["portforward.k8s.io"])).unwrap();
    assert_eq!(agreed.protocol, ForwardProtocol::Spdy);
    assert_eq!(agreed.headers[STREAM_PROTOCOL], "portforward.k8s.io");
    let tunnel = forward(&Method::GET, &websocket_headers(&["SPDY/3.1+portforward.k8s.io"])).unwrap();
    assert_eq!(tunnel.protocol, ForwardProtocol::Tunnel);
    let channels = forward(&Method::GET, &websocket_headers(&["v4.channel.k8s.io"])).unwrap();
    assert_eq!(channels.protocol, ForwardProtocol::WebSocket(Coding::Binary));
}

#[test]
fn refusals_say_what_is_supported() {
    let refusal = command(&Method::POST, &spdy_headers(&["v9.channel.k8s.io"])).unwrap_err();
    assert_eq!(refusal.status, StatusCode::FORBIDDEN);
    assert!(refusal.body.contains("v4.channel.k8s.io"), "{}", refusal.body);
    assert_eq!(refusal.headers.get_all(ACCEPTED_PROTOCOLS).iter().count(), 4);
    let refusal = forward(&Method::GET, &websocket_headers(&["mqtt"])).unwrap_err();
    assert_eq!(refusal.status, StatusCode::FORBIDDEN);
    assert!(refusal.body.contains(TUNNEL), "{}", refusal.body);
}

#[test]
fn requests_that_are_no_upgrade_are_refused() {
    let table: [(Method, HeaderMap, u16); 7] = [
        (Method::GET, HeaderMap::new(), 400),
        (Method::PUT, spdy_headers(&[]), 405),
        (Method::POST, headers(&[("upgrade", "SPDY/3.1")]), 400),
        (Method::POST, headers(&[("connection", "upgrade"), ("upgrade", "h2c")]), 400),
        (Method::POST, websocket_headers(&[]), 405),
        (Method::GET, headers(&[("connection", "upgrade"), ("upgrade", "websocket")]), 426),
        (
            Method::GET,
            headers(&[
                ("connection", "upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-version", "13"),
                ("sec-websocket-key", "short"),
            ]),
            400,
        ),
    ];
    for (method, map, status) in table {
        let refusal = command(&method, &map).unwrap_err();
        assert_eq!(refusal.status.as_u16(), status, "{method} {map:?}");
        assert!(!refusal.body.trim().is_empty());
    }
}
