//! A listener and its connections. Connections wait here for a minute, so the memory cost of a waiting connection is
//! kept small (docs/scale.md).

use std::convert::Infallible;
use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Uri};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::shutdown::Shutdown;

/// The pause after `accept` fails. If descriptors have run out, a connection has to end first.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_secs(1);

/// The address from which a request came.
#[derive(Debug, Clone, Copy)]
pub struct PeerAddr(pub SocketAddr);

/// Serves one listener until the shutdown, and then until its open connections end.
pub async fn serve_connections(listener: TcpListener, router: Router, shutdown: Shutdown) {
    let mut connections = JoinSet::new();
    let mut ends = pin!(shutdown.triggered());
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    connections.spawn(serve_connection(stream, peer, router.clone(), shutdown.clone()));
                }
                // The client closed the connection before it was accepted.
                Err(error) if matches!(error.kind(), ConnectionAborted | ConnectionReset | ConnectionRefused) => {}
                Err(error) => {
                    warn!("a connection is not taken: {error}; for want of descriptors, LimitNOFILE= or ulimit -Hn gives more");
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = &mut ends => break,
        }
    }
    // New clients get "connection refused" from here on, and can try another server.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve_connection(stream: TcpStream, peer: SocketAddr, router: Router, shutdown: Shutdown) {
    // Without TCP_NODELAY an answer may wait for an acknowledgement. An error only delays answers, so it is ignored.
    let _ = stream.set_nodelay(true);
    let router = TowerToHyperService::new(router);
    let service = service_fn(|request| handle_request(&router, peer, request));
    // With a timer, hyper limits the time for a request's head to its default of 30 seconds.
    let mut server = http1::Builder::new();
    let server = server.timer(TokioTimer::new());
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.triggered() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!("a connection ended: {error}");
    }
}

fn handle_request(
    router: &TowerToHyperService<Router>,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response, Infallible>> + use<> {
    let mut request = copy_request_head(request);
    request.extensions_mut().insert(PeerAddr(peer));
    router.call(request)
}

/// Copies the head of a request. The head from hyper keeps a reference to the read buffer. With it, the connection
/// would hold a second buffer until the request is answered.
fn copy_request_head(request: Request<Incoming>) -> Request<Incoming> {
    let (mut head, body) = request.into_parts();
    let copy = |value: &HeaderValue| {
        let mut copy = HeaderValue::from_bytes(value.as_bytes()).ok()?;
        copy.set_sensitive(value.is_sensitive());
        Some(copy)
    };
    let mut headers = HeaderMap::with_capacity(head.headers.len());
    for (name, value) in &head.headers {
        // hyper has already validated these values, so the copy does not fail.
        headers.extend(copy(value).map(|value| (name.clone(), value)));
    }
    head.headers = headers;
    if let Ok(uri) = head.uri.to_string().parse::<Uri>() {
        head.uri = uri;
    }
    Request::from_parts(head, body)
}
