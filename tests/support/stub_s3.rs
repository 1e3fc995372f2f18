//! An S3 server for tests that does what no real one can be brought to do: forget conditions, refuse them, hang.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

/// A running stub; what is done to it is seen by the next request.
#[derive(Clone)]
pub(crate) struct Stub {
    pub(crate) address: SocketAddr,
    pub(crate) state: Arc<Mutex<State>>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) conditions: Conditions,
    pub(crate) reads: Mood,
    pub(crate) writes: Mood,
    /// Writes are done, and their answer is lost.
    pub(crate) loses_answers: bool,
    /// Its clock is ahead of this machine's by so much.
    pub(crate) clock_ahead: Duration,
    /// Content, tag, and when it was stored.
    pub(crate) objects: BTreeMap<String, (Vec<u8>, String, SystemTime)>,
    /// What was asked for (a method, or LIST), with its condition if it had one.
    pub(crate) requests: Vec<String>,
    tags: u64,
}

/// What becomes of `If-Match` and `If-None-Match`.
#[derive(Default, Clone, Copy)]
pub(crate) enum Conditions {
    #[default]
    Honoured,
    Ignored,
    /// Refused with this status, whatever they say.
    Refused(u16),
    /// Never fulfilled.
    Failing,
}

/// How requests of one sort fare.
#[derive(Default, Clone, Copy)]
pub(crate) enum Mood {
    #[default]
    Good,
    Slow(Duration),
    Failing(u16),
    Hanging,
}

impl Stub {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stub = Self { address: listener.local_addr().unwrap(), state: Arc::default() };
        let server = stub.clone();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let server = server.clone();
                let service = service_fn(move |request| {
                    let server = server.clone();
                    async move { Ok::<_, Infallible>(server.answer(request).await) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(connection), service));
            }
        });
        stub
    }

    /// Puts an object there, as if it had been stored that long ago.
    pub(crate) fn put(&self, key: &str, bytes: Vec<u8>, ago: Duration) {
        let mut state = self.state.lock().unwrap();
        let tag = state.next_tag();
        let stored_at = SystemTime::now() + state.clock_ahead - ago;
        state.objects.insert(key.to_owned(), (bytes, tag, stored_at));
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.state.lock().unwrap().objects.keys().cloned().collect()
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let is_read = request.method() == Method::GET;
        let condition = ["if-match", "if-none-match"].into_iter().find_map(|name| {
            let value = request.headers().get(name)?.to_str().ok()?.to_owned();
            Some((name, value))
        });
        let (mood, loses) = {
            let mut state = self.state.lock().unwrap();
            let name = condition.as_ref().map(|(name, _)| format!(" {name}")).unwrap_or_default();
            let is_list = request.uri().query().is_some_and(|query| query.contains("list-type=2"));
            let act = if is_list { "LIST" } else { request.method().as_str() };
            state.requests.push(format!("{act}{name}"));
            (if is_read { state.reads } else { state.writes }, state.loses_answers && !is_read)
        };
        match mood {
            Mood::Good => {}
            Mood::Slow(pause) => tokio::time::sleep(pause).await,
            Mood::Failing(status) => return error(status, "InternalError"),
            Mood::Hanging => std::future::pending().await,
        }
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        let answer = self.state.lock().unwrap().act(&parts, body, condition);
        if loses { std::future::pending().await } else { answer }
    }
}

impl State {
    fn act(
        &mut self,
        parts: &http::request::Parts,
        body: Vec<u8>,
        condition: Option<(&str, String)>,
    ) -> Response<Full<Bytes>> {
        let key = parts.uri.path().trim_start_matches('/').split_once('/').map_or("", |(_, key)| key).to_owned();
        let query = parts.uri.query().unwrap_or_default();
        if query.contains("list-type=2") {
            return self.list(query);
        }
        if let Some((name, value)) = condition {
            let held = self.objects.get(&key).map(|(_, tag, _)| tag);
            let is_met = match name {
                "if-match" => held == Some(&value),
                _ => held.is_none(),
            };
            match self.conditions {
                Conditions::Honoured if is_met => {}
                Conditions::Ignored => {}
                Conditions::Refused(status) => return error(status, "NotImplemented"),
                Conditions::Honoured if name == "if-match" && held.is_none() => return error(404, "NoSuchKey"),
                Conditions::Honoured | Conditions::Failing => return error(412, "PreconditionFailed"),
            }
        }
        match parts.method {
            Method::GET => match self.objects.get(&key) {
                Some((bytes, tag, _)) => Response::builder().header("etag", tag).body(bytes.clone().into()).unwrap(),
                None => error(404, "NoSuchKey"),
            },
            Method::PUT => {
                let tag = self.next_tag();
                self.objects.insert(key, (body, tag.clone(), SystemTime::now() + self.clock_ahead));
                Response::builder().header("etag", tag).body(Full::default()).unwrap()
            }
            _ => {
                self.objects.remove(&key);
                Response::builder().status(204).body(Full::default()).unwrap()
            }
        }
    }

    fn list(&self, query: &str) -> Response<Full<Bytes>> {
        let prefix = query.split('&').find_map(|pair| pair.strip_prefix("prefix=")).unwrap_or_default();
        let prefix = prefix.replace("%2F", "/");
        let mut xml = "<ListBucketResult><IsTruncated>false</IsTruncated>".to_owned();
        for (key, (bytes, tag, stored_at)) in self.objects.iter().filter(|(key, _)| key.starts_with(&prefix)) {
            let (size, time) = (bytes.len(), humantime::format_rfc3339_millis(*stored_at));
            xml += &format!(
                "<Contents><Key>{key}</Key><LastModified>{time}</LastModified><ETag>{tag}</ETag><Size>{size}</Size></Contents>"
            );
        }
        xml += "</ListBucketResult>";
        Response::builder().header("content-type", "application/xml").body(xml.into()).unwrap()
    }

    fn next_tag(&mut self) -> String {
        self.tags += 1;
        format!("\"tag-{}\"", self.tags)
    }
}

fn error(status: u16, code: &str) -> Response<Full<Bytes>> {
    let xml = format!("<Error><Code>{code}</Code><Message>as told to</Message></Error>");
    Response::builder().status(status).header("content-type", "application/xml").body(xml.into()).unwrap()
}
