//! A listener and its connections. What waits here for a minute is a connection, so what one costs while it waits is kept
//! small (docs/scale.md).

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

/// How long to wait where no connection can be taken: for want of descriptors, one has to end first.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Where a request came from.
#[derive(Debug, Clone, Copy)]
pub struct PeerAddr(pub SocketAddr);

/// Serves one face until the end, and what is in flight then.
pub async fn serve_connections(listener: TcpListener, router: Router, shutdown: Shutdown) {
    let mut connections = JoinSet::new();
    let mut ends = pin!(shutdown.triggered());
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    connections.spawn(serve_connection(stream, peer, router.clone(), shutdown.clone()));
                }
                // It was gone before it was taken.
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
    // Whoever comes now is refused, and goes elsewhere.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve_connection(stream: TcpStream, peer: SocketAddr, router: Router, shutdown: Shutdown) {
    // Without it an answer may wait for an acknowledgement; it comes all the same.
    let _ = stream.set_nodelay(true);
    let router = TowerToHyperService::new(router);
    let service = service_fn(|request| handle_request(&router, peer, request));
    // With a timer a request's head has half a minute to come, hyper's default.
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

/// The request with a head of its own. As hyper gives it, it holds on to the buffer that it was read into, and so, as long as
/// it is answered, the connection has a second one.
fn copy_request_head(request: Request<Incoming>) -> Request<Incoming> {
    let (mut head, body) = request.into_parts();
    let copy = |value: &HeaderValue| {
        let mut copy = HeaderValue::from_bytes(value.as_bytes()).ok()?;
        copy.set_sensitive(value.is_sensitive());
        Some(copy)
    };
    let mut headers = HeaderMap::with_capacity(head.headers.len());
    for (name, value) in &head.headers {
        // They were valid, or hyper would not have given them.
        headers.extend(copy(value).map(|value| (name.clone(), value)));
    }
    head.headers = headers;
    if let Ok(uri) = head.uri.to_string().parse::<Uri>() {
        head.uri = uri;
    }
    Request::from_parts(head, body)
}
