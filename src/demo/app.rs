//! The application behind the demo: answers every request with its name.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use tokio::net::TcpListener;

/// Serves until it is killed, or its parent is.
///
/// # Errors
/// When the address cannot be bound.
pub async fn run(listen: SocketAddr, name: &str) -> anyhow::Result<()> {
    end_with_parent()?;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen at {listen}"))?;
    let name: Arc<str> = name.into();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let name = Arc::clone(&name);
        tokio::spawn(async move {
            let service = service_fn(move |request| std::future::ready(Ok::<_, Infallible>(answer(&request, &name))));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// A machine that loses its power takes both with it; so does this one.
fn end_with_parent() -> anyhow::Result<()> {
    let parent = getppid();
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot tie this process to its parent")?;
    anyhow::ensure!(getppid() == parent, "the parent has ended already");
    Ok(())
}

fn answer(request: &Request<Incoming>, name: &str) -> Response<Full<Bytes>> {
    let text = format!("{} {} answered by {name}\n", request.method(), request.uri().path());
    let mut response = Response::new(Full::new(Bytes::from(text)));
    if let Ok(value) = name.parse() {
        response.headers_mut().insert("x-served-by", value);
    }
    response
}
