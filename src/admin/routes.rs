//! Which path answers what, and who may change something.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::metrics::{self, Format};
use super::show;
use super::tally::Tally;
use super::view::{DoneView, ErrorView};
use super::{Lifecycle, Sources};

/// The most bytes of a request's body. No request needs any yet.
const BODY_BYTES_MAX: usize = 4 * 1024;
/// How long a reload may take: it may run a check of a whole nginx configuration.
const RELOAD_LIMIT: Duration = Duration::from_secs(50);

const PATHS: &str = "GET /healthz, /readyz, /metrics, /v1/status, /v1/members, /v1/apps; POST /v1/reload";

/// How a connection came here, which decides who may change something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Via {
    /// The unix socket: file permissions have decided.
    Unix,
    /// TCP on a loopback address: somebody on this machine, or a web page in a browser on it.
    Loopback,
    /// TCP on any other address: anybody.
    Network,
}

impl Via {
    /// What the address that a TCP listener is bound to means. All addresses include those of the network.
    pub(super) fn of(bound: IpAddr) -> Self {
        if bound.is_loopback() { Self::Loopback } else { Self::Network }
    }
}

/// What all connections of one listener share.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) sources: Sources,
    pub(super) tally: Arc<Mutex<Tally>>,
    pub(super) token: Option<Arc<str>>,
    pub(super) via: Via,
}

pub(super) fn router(shared: Shared) -> Router {
    let shared = Arc::new(shared);
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/v1/status", get(status))
        .route("/v1/members", get(members))
        .route("/v1/apps", get(apps))
        .route("/v1/reload", post(reload))
        .fallback(async || failure(StatusCode::NOT_FOUND, format!("there is no such path; there are: {PATHS}")))
        .method_not_allowed_fallback(async || {
            failure(StatusCode::METHOD_NOT_ALLOWED, format!("this path does not take that method; there are: {PATHS}"))
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn_with_state(Arc::clone(&shared), guard))
        .with_state(shared)
}

type Node = State<Arc<Shared>>;

fn failure(status: StatusCode, error: impl Into<String>) -> Response {
    (status, Json(ErrorView { error: error.into() })).into_response()
}

async fn guard(State(shared): Node, request: Request, next: Next) -> Response {
    match judge(shared.via, shared.token.as_deref(), request.method(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err((status, reason)) => failure(status, reason),
    }
}

/// Whether a request may go on. Browsers send `Origin` with whatever a page of another site makes them send,
/// so no request with one is answered; and a page whose name was made to point here shows itself by `Host`.
fn judge(
    via: Via,
    token: Option<&str>,
    method: &Method,
    headers: &HeaderMap,
) -> Result<(), (StatusCode, &'static str)> {
    if headers.contains_key(ORIGIN) {
        return Err((StatusCode::FORBIDDEN, "requests of web pages are not answered"));
    }
    if matches!(*method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    match via {
        Via::Unix => Ok(()),
        Via::Loopback if has_local_host(headers) => Ok(()),
        Via::Loopback => Err((
            StatusCode::FORBIDDEN,
            "the Host header must be localhost or an IP address for requests that change something",
        )),
        Via::Network => judge_token(token, headers),
    }
}

fn judge_token(token: Option<&str>, headers: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
    let Some(token) = token else {
        return Err((
            StatusCode::FORBIDDEN,
            "this address is not a loopback one and no admin.token is configured: use the unix socket, or configure a token",
        ));
    };
    let given = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
    let given = given.and_then(|value| value.strip_prefix(b"Bearer ")).unwrap_or_default();
    if aws_lc_rs::constant_time::verify_slices_are_equal(given, token.as_bytes()).is_ok() {
        Ok(())
    } else {
        Err((
            StatusCode::UNAUTHORIZED,
            "this needs the header Authorization: Bearer TOKEN with the token that admin.token names",
        ))
    }
}

fn has_local_host(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST).and_then(|host| host.to_str().ok()) else {
        return false;
    };
    let host = match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => host,
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

async fn readyz(State(shared): Node) -> Response {
    let lifecycle = *shared.sources.lifecycle.borrow();
    match lifecycle {
        Lifecycle::Ready => "ready\n".into_response(),
        Lifecycle::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response(),
        Lifecycle::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response(),
    }
}

async fn metrics(State(shared): Node, headers: HeaderMap) -> Response {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let format = Format::accepted(accept);
    let mut tally = shared.tally.lock().unwrap_or_else(PoisonError::into_inner);
    match metrics::encode(&shared.sources, &mut tally, format) {
        Ok(text) => ([(CONTENT_TYPE, format.content_type())], text).into_response(),
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, format!("the numbers cannot be written: {error}")),
    }
}

async fn status(State(shared): Node) -> Response {
    Json(show::status(&shared.sources, SystemTime::now())).into_response()
}

async fn members(State(shared): Node) -> Response {
    let (roster, keys) = (shared.sources.roster.borrow().clone(), shared.sources.keys.borrow().clone());
    Json(show::members(&roster, &keys)).into_response()
}

async fn apps(State(shared): Node) -> Response {
    Json(show::apps(&shared.sources)).into_response()
}

/// Takes a body so that one that is too long is refused; nothing is expected in it.
async fn reload(State(shared): Node, _: Bytes) -> Response {
    let (answer, answered) = oneshot::channel();
    match shared.sources.reload.try_send(answer) {
        Ok(()) => {}
        Err(mpsc::error::TrySendError::Full(_)) => {
            return failure(StatusCode::SERVICE_UNAVAILABLE, "another reload is under way; try again in a moment");
        }
        Err(mpsc::error::TrySendError::Closed(_)) => {
            return failure(StatusCode::SERVICE_UNAVAILABLE, "the node is ending");
        }
    }
    match timeout(RELOAD_LIMIT, answered).await {
        Ok(Ok(Ok(message))) => Json(DoneView { message }).into_response(),
        Ok(Ok(Err(error))) => failure(StatusCode::UNPROCESSABLE_ENTITY, error),
        Ok(Err(_)) => failure(StatusCode::SERVICE_UNAVAILABLE, "the node is ending"),
        Err(_) => {
            failure(StatusCode::GATEWAY_TIMEOUT, "the reload takes longer than 50 s; status shows what comes of it")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(via: Via, token: Option<&str>, method: &Method, header: &[(&str, &str)]) -> u16 {
        let mut headers = HeaderMap::new();
        for (name, value) in header {
            headers.insert(name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap());
        }
        judge(via, token, method, &headers).map_or_else(|(status, _)| status.as_u16(), |()| 200)
    }

    #[test]
    fn only_loopback_addresses_are_loopback() {
        for local in ["127.0.0.1", "127.1.2.3", "::1"] {
            assert_eq!(Via::of(local.parse().unwrap()), Via::Loopback, "{local}");
        }
        for other in ["0.0.0.0", "::", "10.0.0.1", "::ffff:127.0.0.1", "fe80::1"] {
            assert_eq!(Via::of(other.parse().unwrap()), Via::Network, "{other}");
        }
    }

    #[test]
    fn from_the_network_a_change_needs_the_token() {
        let with = |value: &str| {
            judged(Via::Network, Some("s3cret"), &Method::POST, &[("host", "node-1"), ("authorization", value)])
        };
        assert_eq!(with("Bearer s3cret"), 200);
        for wrong in ["", "Bearer ", "Bearer wrong!", "Bearer s3cre", "Bearer s3cret1", "s3cret", "Basic s3cret"] {
            assert_eq!(with(wrong), 401, "{wrong:?}");
        }
        assert_eq!(judged(Via::Network, Some("s3cret"), &Method::POST, &[]), 401);
        assert_eq!(judged(Via::Network, Some("s3cret"), &Method::GET, &[]), 200, "reading needs none");
        let with_origin = [("origin", "http://node-1"), ("authorization", "Bearer s3cret")];
        assert_eq!(judged(Via::Network, Some("s3cret"), &Method::POST, &with_origin), 403);
    }

    #[test]
    fn without_a_token_nobody_changes_anything_from_the_network() {
        for value in ["", "Bearer ", "Bearer x"] {
            let header = [("host", "127.0.0.1"), ("authorization", value)];
            assert_eq!(judged(Via::Network, None, &Method::POST, &header), 403, "{value:?}");
        }
    }

    #[test]
    fn hosts_that_only_this_machine_can_mean_are_local() {
        let with = |host: &str| judged(Via::Loopback, None, &Method::POST, &[("host", host)]);
        for local in ["localhost", "LOCALHOST:9377", "127.0.0.1", "127.0.0.1:9377", "[::1]", "[::1]:9377"] {
            assert_eq!(with(local), 200, "{local}");
        }
        for other in ["", "evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example:1"] {
            assert_eq!(with(other), 403, "{other:?}");
        }
    }
}
