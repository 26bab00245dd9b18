//! Logins: what is sent to whom, and what is never sent.

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use cofferdam::registry::{AuthFields, Credentials, Registry, RegistryError, chain};

use crate::fake::{Reply, Request, Server};
use crate::{blob_body, certs_d, config, descriptor, reference, registry, sound};

const TOKEN: &str = "a.token-of_it";

fn basic(username: &str, password: &str) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
    format!("Basic {text}")
}

/// A registry that wants the token of the service at `realm`.
async fn bearer_registry(realm: &str) -> Server {
    let challenge =
        format!(r#"Bearer realm="{realm}",service="the registry",scope="repository:team/app:pull,push""#);
    Server::start(move |request| match request.header("authorization") {
        Some(value) if value == format!("Bearer {TOKEN}") => sound(request, &blob_body(1000)),
        _ => Reply::new(401, "").header("www-authenticate", challenge.clone()),
    })
    .await
}

fn token_reply() -> Reply {
    Reply::new(200, format!(r#"{{"token":"{TOKEN}","expires_in":300,"issued_at":"2020-01-01T00:00:00Z"}}"#))
}

/// A token service that gives a token to those who pass `check`.
async fn token_service(check: impl Fn(&Request) -> bool + Send + Sync + 'static) -> Server {
    Server::start(move |request| match check(request) {
        true => token_reply(),
        false => Reply::new(401, r#"{"details":"incorrect username or password"}"#),
    })
    .await
}

async fn resolve(
    registry: &Registry,
    server: &Server,
    credentials: &Credentials,
) -> Result<(), RegistryError> {
    registry.resolve(&reference(&server.domain()), credentials).await.map(|_| ())
}

#[tokio::test]
async fn anonymous_tokens_are_fetched_once() {
    let tokens = token_service(|request| request.header("authorization").is_none()).await;
    let server = bearer_registry(&format!("http://{}/token?a=b", tokens.address)).await;
    let registry = registry();
    for _ in 0..2 {
        resolve(&registry, &server, &Credentials::anonymous()).await.unwrap();
    }
    let mut blob = registry.blob(
        &reference(&server.domain()),
        &descriptor(&blob_body(1000)),
        0,
        &Credentials::anonymous(),
    );
    assert!(blob.chunk().await.unwrap().is_some());
    assert_eq!(tokens.requests().len(), 1);
    // 401 once, and then a token with every request.
    assert_eq!(server.requests().len(), 4);
    let query = &tokens.requests()[0].query;
    assert_eq!(
        query, "a=b&service=the+registry&scope=repository%3Ateam%2Fapp%3Apull",
        "no right to push is asked for"
    );
}

#[tokio::test]
async fn passwords_go_to_the_token_service_and_not_to_the_registry() {
    let tokens = token_service(|r| r.header("authorization") == Some(&basic("user", "geheim"))).await;
    let server = bearer_registry(&format!("http://{}/token", tokens.address)).await;
    let registry = registry();
    resolve(&registry, &server, &Credentials::password("user", "geheim")).await.unwrap();
    for request in server.requests() {
        assert!(!request.header("authorization").unwrap_or_default().starts_with("Basic"));
    }
    // Another login does not get the first one's token.
    let error = resolve(&registry, &server, &Credentials::password("user", "falsch")).await.unwrap_err();
    assert!(matches!(error.decisive(), RegistryError::Unauthorized { .. }), "{error:?}");
    let text = format!("{} {error:?}", chain(&error));
    assert!(text.contains("incorrect username or password") && !text.contains("falsch"), "{text}");
    assert!(text.contains(&tokens.domain()) && text.contains(&server.domain()), "{text}");
}

#[tokio::test]
async fn basic_logins_are_sent_when_asked_for_and_then_at_once() {
    let server = Server::start(|request| match request.header("authorization") {
        Some(value) if value == basic("user", "geheim") => sound(request, b""),
        _ => Reply::new(401, "").header("www-authenticate", r#"Negotiate, Basic realm="a, b""#),
    })
    .await;
    let registry = registry();
    for _ in 0..2 {
        resolve(&registry, &server, &Credentials::password("user", "geheim")).await.unwrap();
    }
    let sent: Vec<bool> = server.requests().iter().map(|r| r.header("authorization").is_some()).collect();
    assert_eq!(sent, [false, true, true]);
    for wrong in [Credentials::password("user", "falsch"), Credentials::anonymous()] {
        let error = resolve(&registry, &server, &wrong).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error:?}");
        assert!(!format!("{error} {error:?}").contains("falsch"));
    }
}

#[tokio::test]
async fn identity_tokens_are_exchanged_by_post() {
    let tokens = token_service(|request| request.method == "POST").await;
    let server = bearer_registry(&format!("http://{}/token", tokens.address)).await;
    let fields = AuthFields { identity_token: "iden&tity", ..AuthFields::default() };
    resolve(&registry(), &server, &Credentials::from_fields(fields).unwrap()).await.unwrap();
    let request = &tokens.requests()[0];
    assert_eq!(
        request.body,
        "grant_type=refresh_token&client_id=cofferdam&service=the+registry&\
         scope=repository%3Ateam%2Fapp%3Apull&refresh_token=iden%26tity"
    );
    assert_eq!(request.header("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(request.query, "");
}

#[tokio::test]
async fn identity_tokens_fall_back_to_get_where_post_is_unknown() {
    for (username, status) in [("", 404), ("", 405), ("00000000", 401)] {
        let tokens = Server::start(move |request| match request.method.as_str() {
            "POST" => Reply::new(status, ""),
            _ if request.header("authorization") == Some(&basic(username, "identity")) => token_reply(),
            _ => Reply::new(401, ""),
        })
        .await;
        let server = bearer_registry(&format!("http://{}/token", tokens.address)).await;
        let fields = AuthFields { username, identity_token: "identity", ..AuthFields::default() };
        let credentials = Credentials::from_fields(fields).unwrap();
        resolve(&registry(), &server, &credentials).await.unwrap_or_else(|e| panic!("{status}: {e:?}"));
    }
}

#[tokio::test]
async fn the_body_with_an_identity_token_is_not_redirected() {
    let elsewhere = token_service(|_| true).await;
    let to = format!("http://{}/token", elsewhere.address);
    let tokens = Server::start(move |_| Reply::redirect(to.clone())).await;
    let server = bearer_registry(&format!("http://{}/token", tokens.address)).await;
    let fields = AuthFields { identity_token: "identity", ..AuthFields::default() };
    resolve(&registry(), &server, &Credentials::from_fields(fields).unwrap()).await.unwrap_err();
    assert!(elsewhere.requests().is_empty());
}

#[tokio::test]
async fn registry_tokens_are_sent_at_once() {
    let server = bearer_registry("http://127.0.0.1:1/token").await;
    let fields = AuthFields { registry_token: TOKEN, ..AuthFields::default() };
    resolve(&registry(), &server, &Credentials::from_fields(fields).unwrap()).await.unwrap();
    assert_eq!(server.requests().len(), 1);
    let fields = AuthFields { registry_token: "other", ..AuthFields::default() };
    let error = resolve(&registry(), &server, &Credentials::from_fields(fields).unwrap()).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error:?}");
}

#[tokio::test]
async fn a_token_that_is_refused_is_fetched_anew() {
    let valid = Arc::new(Mutex::new("one"));
    let (given, wanted) = (valid.clone(), valid.clone());
    let tokens =
        Server::start(move |_| Reply::new(200, format!(r#"{{"access_token":"{}"}}"#, given.lock().unwrap())))
            .await;
    let challenge = format!(r#"Bearer realm="http://{}/token""#, tokens.address);
    let server = Server::start(move |request| {
        let wanted = format!("Bearer {}", wanted.lock().unwrap());
        match request.header("authorization") == Some(&wanted) {
            true => sound(request, b""),
            false => Reply::new(401, "").header("www-authenticate", challenge.clone()),
        }
    })
    .await;
    let registry = registry();
    resolve(&registry, &server, &Credentials::anonymous()).await.unwrap();
    *valid.lock().unwrap() = "two";
    resolve(&registry, &server, &Credentials::anonymous()).await.unwrap();
    assert_eq!((tokens.requests().len(), server.requests().len()), (2, 4));
}

#[tokio::test]
async fn a_cdn_gets_neither_login_nor_headers() {
    let body = blob_body(1000);
    let content = body.clone();
    let cdn = Server::start(move |request| match request.path.as_str() {
        "/signed" => Reply::new(200, content.clone()),
        _ => Reply::new(401, "").header("www-authenticate", "Basic realm=cdn"),
    })
    .await;
    for (path, works) in [("/signed?sig=geheim", true), ("/other?sig=geheim", false)] {
        let to = format!("http://{}{path}", cdn.address);
        let server = Server::start(move |request| match request.header("authorization") {
            Some(_) => Reply::redirect(to.clone()),
            None => Reply::new(401, "").header("www-authenticate", "Basic realm=x"),
        })
        .await;
        let text = format!("server = \"http://{}\"\n[header]\nX-Secret = \"geheim\"", server.address);
        let root = certs_d("reg.example", &text);
        let registry = Registry::new(config(Some(root.path())));
        let credentials = Credentials::password("user", "geheim");
        let mut blob = registry.blob(&reference("reg.example"), &descriptor(&body), 0, &credentials);
        match (blob.chunk().await, works) {
            (Ok(Some(bytes)), true) => assert!(bytes == body),
            (Err(error), false) => {
                let text = format!("{} {error:?}", chain(&error));
                assert!(!text.contains("geheim") && text.contains(&cdn.domain()), "{text}");
            }
            (result, _) => panic!("{path}: {result:?}"),
        }
        assert!(server.requests().iter().all(|request| request.header("x-secret") == Some("geheim")));
    }
    assert_eq!(cdn.requests().len(), 2);
    for request in cdn.requests() {
        assert_eq!((request.header("authorization"), request.header("x-secret")), (None, None));
    }
}

#[tokio::test]
async fn a_mirror_that_asks_for_a_login_gets_none() {
    let wants = |request: &Request| match request.header("authorization") {
        Some(_) => sound(request, b""),
        None => Reply::new(401, "").header("www-authenticate", "Basic realm=x"),
    };
    let mirror = Server::start(wants).await;
    let server = Server::start(wants).await;
    let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]", server.address, mirror.address);
    let root = certs_d("reg.example", &text);
    let credentials = Credentials::password("user", "geheim");
    let careful = Registry::new(config(Some(root.path())));
    let resolved = careful.resolve(&reference("reg.example"), &credentials).await.unwrap();
    assert_eq!(resolved.host, server.domain());
    assert_eq!(mirror.requests().len(), 1);
    assert_eq!(mirror.requests()[0].header("authorization"), None);
    let mut trusting = config(Some(root.path()));
    trusting.credentials_for_mirrors = true;
    let resolved = Registry::new(trusting).resolve(&reference("reg.example"), &credentials).await.unwrap();
    assert_eq!(resolved.host, mirror.domain());
}

#[tokio::test]
async fn broken_token_services_are_errors_without_secrets() {
    for body in ["", "{}", r#"{"token":"geheim\nx"}"#, r#"{"token":["geheim"]}"#, r#"{"token":""}"#] {
        let tokens = Server::start(move |_| Reply::new(200, body)).await;
        let server = bearer_registry(&format!("http://{}/token", tokens.address)).await;
        let error = resolve(&registry(), &server, &Credentials::anonymous()).await.unwrap_err();
        assert!(matches!(error.decisive(), RegistryError::Protocol { .. }), "{body}: {error:?}");
        assert!(!format!("{} {error:?}", chain(&error)).contains("geheim"), "{error:?}");
    }
    for realm in ["", "file:///etc/passwd", "nonsense"] {
        let server = bearer_registry(realm).await;
        let error = resolve(&registry(), &server, &Credentials::anonymous()).await.unwrap_err();
        assert!(matches!(error, RegistryError::Protocol { .. }), "{realm}: {error:?}");
    }
}
