//! The channel over HTTP/1.1 (KP-3.1 to KP-3.4). It connects to the literal address, uses no proxy, follows no
//! redirect, reads at most 64 KiB and limits the time of every call. Each call has its own connection. There is only
//! about one call a minute, and a connection that is never reused cannot be stale.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::base_url::BaseUrl;
use super::error::{ChannelError, UnusableResponse, is_final_refusal};
use super::retry_after::parse_retry_after;
use super::stream::HyperTcpStream;
use super::{Channel, Delivery, Polled, StoreResponse};
use crate::policy::command::Origin;
use crate::policy::types::{CommandId, InstanceId};

/// The maximum number of bytes of a body.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// The maximum number of bytes of a header. hyper itself accepts at most 100 lines.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// The maximum number of 1xx answers in a call.
const MAX_INTERIM_RESPONSES: usize = 8;

/// The time limit of a call, in addition to the wait of a long poll.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The channel to the metadata service.
#[derive(Debug, Clone)]
pub struct HttpChannel {
    base: BaseUrl,
    call_limit: Duration,
}

/// The service's response. The body is kept only for status 200.
struct HttpResponse {
    status: StatusCode,
    retry_after: Option<Duration>,
    body: Vec<u8>,
}

impl HttpResponse {
    /// Converts a status that is not a success into the error.
    fn into_error(self) -> ChannelError {
        ChannelError::Status { status: self.status.as_u16(), retry_after: self.retry_after }
    }
}

impl HttpChannel {
    /// Creates the channel to the service at `base`.
    pub fn new(base: BaseUrl) -> Self {
        Self { base, call_limit: CALL_TIMEOUT }
    }

    /// Makes one call on one connection. One time limit covers all of it, so that an answer that arrives byte by byte
    /// is limited too.
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&str>,
        wait: Duration,
    ) -> Result<HttpResponse, ChannelError> {
        let limit = wait + self.call_limit;
        let begun = Instant::now();
        let request = self.build_request(method, path, body)?;
        match timeout(limit, self.exchange(request, begun)).await {
            Ok(answer) => answer,
            Err(_) => Err(ChannelError::TimedOut(limit)),
        }
    }

    fn build_request(
        &self,
        method: Method,
        path: &str,
        body: Option<&str>,
    ) -> Result<Request<Full<Bytes>>, ChannelError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base.path()))
            .header(HOST, self.base.authority())
            .header(USER_AGENT, concat!("keypair-agent/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json")
            .header(CONNECTION, "close");
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = Full::new(Bytes::from(body.unwrap_or_default().to_owned()));
        // The base URL and the ids are valid by construction, so this does not fail.
        request.body(body).map_err(|_| ChannelError::Unusable(UnusableResponse::NotHttp))
    }

    async fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
        begun: Instant,
    ) -> Result<HttpResponse, ChannelError> {
        let stream = TcpStream::connect(self.base.address())
            .await
            .map_err(|error| ChannelError::from_connect(&error))?;
        let failed = |error: hyper::Error| classify_error(&error, begun.elapsed());
        let interim = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&interim);
        hyper::ext::on_informational(&mut request, move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let flooded = || interim.load(Ordering::Relaxed) > MAX_INTERIM_RESPONSES;
        let too_many = || Err(ChannelError::Unusable(UnusableResponse::TooManyInterim));
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEADER_BYTES)
            .max_header_size(MAX_HEADER_BYTES)
            .handshake(HyperTcpStream::new(stream))
            .await
            .map_err(failed)?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(failed)?;
            if flooded() {
                return too_many();
            }
            read_response(response, begun).await
        };
        // The connection is polled together with the answer and does not compete with it. The service may close the
        // connection after its last byte, so the connection may end before the answer is read.
        let mut connection = pin!(connection);
        let mut answer = pin!(answer);
        let mut open = true;
        poll_fn(|context| {
            if open && connection.as_mut().poll(context).is_ready() {
                open = false;
            }
            // 1xx answers may follow one another without end and without a final answer.
            if flooded() {
                return Poll::Ready(too_many());
            }
            match answer.as_mut().poll(context) {
                // Reading the answer may have freed buffer space that the connection waits for.
                Poll::Pending if open => {
                    open = connection.as_mut().poll(context).is_pending();
                    Poll::Pending
                }
                polled => polled,
            }
        })
        .await
    }
}

/// Reads a response. It reads the body only for status 200, and at most 64 KiB of it.
async fn read_response(
    response: Response<hyper::body::Incoming>,
    begun: Instant,
) -> Result<HttpResponse, ChannelError> {
    let status = response.status();
    let retry_after = parse_retry_after(response.headers());
    let mut body = Vec::new();
    if status == StatusCode::OK {
        let mut incoming = response.into_body();
        if incoming.size_hint().lower() > MAX_BODY_BYTES as u64 {
            return Err(ChannelError::Unusable(UnusableResponse::TooLarge));
        }
        while let Some(frame) = incoming.frame().await {
            let frame = frame.map_err(|error| classify_error(&error, begun.elapsed()))?;
            if let Some(data) = frame.data_ref() {
                if body.len() + data.len() > MAX_BODY_BYTES {
                    return Err(ChannelError::Unusable(UnusableResponse::TooLarge));
                }
                body.extend_from_slice(data);
            }
        }
    }
    Ok(HttpResponse { status, retry_after, body })
}

/// Classifies a failed exchange. It uses only the kind of hyper's error, because the error's text could quote the
/// answer.
fn classify_error(error: &hyper::Error, waited: Duration) -> ChannelError {
    if error.is_parse() {
        return ChannelError::Unusable(UnusableResponse::NotHttp);
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return match io.kind() {
                // hyper uses these kinds for broken chunks.
                std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData => {
                    ChannelError::Unusable(UnusableResponse::NotHttp)
                }
                _ => ChannelError::Disconnected { waited },
            };
        }
        source = cause.source();
    }
    ChannelError::Disconnected { waited }
}

/// Parses an instance id `i-…`, bare or as a JSON string (KP-3.5).
fn parse_instance_id(body: &[u8]) -> Option<InstanceId> {
    let text = std::str::from_utf8(body).ok()?.trim();
    if text.starts_with('"') {
        serde_json::from_str::<String>(text).ok()?.trim().parse().ok()
    } else {
        text.parse().ok()
    }
}

impl Channel for HttpChannel {
    async fn fetch_instance_id(&self) -> Result<InstanceId, ChannelError> {
        let answer = self.call(Method::GET, "/instance-id", None, Duration::ZERO).await?;
        if answer.status != StatusCode::OK {
            return Err(answer.into_error());
        }
        parse_instance_id(&answer.body).ok_or(ChannelError::Unusable(UnusableResponse::InstanceId))
    }

    async fn poll_command(&self, wait: Duration) -> Result<Polled, ChannelError> {
        let path = format!("/keypair/command?wait={}", wait.as_secs());
        let answer = self.call(Method::GET, &path, None, wait).await?;
        match answer.status {
            StatusCode::OK => Ok(Polled::Command(Delivery { bytes: answer.body, origin: Origin::Channel })),
            StatusCode::NO_CONTENT => Ok(Polled::NoCommand),
            StatusCode::NOT_FOUND => Ok(Polled::NoQueue(answer.retry_after)),
            _ => Err(answer.into_error()),
        }
    }

    async fn store_result(&self, id: &CommandId, result: &str) -> Result<StoreResponse, ChannelError> {
        let path = format!("/keypair/results/{id}");
        let answer = self.call(Method::PUT, &path, Some(result), Duration::ZERO).await?;
        match answer.status {
            status if status.is_success() => Ok(StoreResponse::Accepted),
            StatusCode::NOT_FOUND => Ok(StoreResponse::Unknown),
            StatusCode::CONFLICT => Ok(StoreResponse::Conflict),
            status if is_final_refusal(status.as_u16()) => Ok(StoreResponse::Refused(status.as_u16())),
            _ => Err(answer.into_error()),
        }
    }

    async fn announce(&self, document: &str) -> Result<(), ChannelError> {
        let answer = self.call(Method::PUT, "/keypair/agent", Some(document), Duration::ZERO).await?;
        match answer.status {
            status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
            _ => Err(answer.into_error()),
        }
    }
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
