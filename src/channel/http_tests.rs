//! Tests of the HTTP channel against a service that misbehaves in many ways.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// The steps of the fake service after it has read the request.
#[derive(Clone)]
enum Step {
    WriteBytes(Vec<u8>),
    Sleep(Duration),
    Hang,
}

use Step::{Hang, Sleep, WriteBytes};

fn write_text(text: &str) -> Step {
    WriteBytes(text.as_bytes().to_vec())
}

fn ok_response(body: &str) -> Step {
    write_text(&format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
}

fn status_response(line: &str) -> Step {
    write_text(&format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\n\r\n"))
}

struct FakeService {
    channel: HttpChannel,
    requests: Arc<Mutex<Vec<String>>>,
}

impl FakeService {
    async fn new(steps: Vec<Step>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (steps, seen) = (steps.clone(), seen.clone());
                tokio::spawn(async move {
                    let request = read_request(&mut stream).await;
                    seen.lock().unwrap().push(request);
                    for step in steps {
                        let written = match step {
                            WriteBytes(bytes) => stream.write_all(&bytes).await,
                            Sleep(time) => {
                                tokio::time::sleep(time).await;
                                Ok(())
                            }
                            Hang => std::future::pending().await,
                        };
                        if written.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let base = format!("http://{address}/metadata/latest").parse().unwrap();
        Self { channel: HttpChannel { base, call_limit: 10 * SECOND }, requests }
    }

    async fn with_short_timeout(steps: Vec<Step>) -> Self {
        let mut service = Self::new(steps).await;
        service.channel.call_limit = Duration::from_millis(300);
        service
    }

    async fn poll_once(&self) -> Result<Polled, ChannelError> {
        self.channel.poll_command(Duration::ZERO).await
    }

    async fn store_sample_result(&self) -> Result<StoreResponse, ChannelError> {
        self.channel.store_result(&"c-1".parse().unwrap(), r#"{"commandId":"c-1"}"#).await
    }
}

async fn read_request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
                .unwrap_or(0);
            if body.len() >= length {
                return text;
            }
        }
        if stream.read_buf(&mut bytes).await.unwrap() == 0 {
            return text;
        }
    }
}

fn command_bytes(polled: Result<Polled, ChannelError>) -> Vec<u8> {
    match polled {
        Ok(Polled::Command(delivery)) => delivery.bytes,
        other => panic!("{other:?}"),
    }
}

/// KP-3.1.
#[tokio::test]
async fn requests_on_the_wire_match_protocol() {
    let service = FakeService::new(vec![ok_response(r#"{"commandId":"x"}"#)]).await;
    let polled = service.channel.poll_command(60 * SECOND).await;
    assert_eq!(command_bytes(polled), br#"{"commandId":"x"}"#);
    assert_eq!(service.store_sample_result().await, Ok(StoreResponse::Accepted));
    assert_eq!(service.channel.announce("{}").await, Ok(()));
    let requests = service.requests.lock().unwrap();
    let poll = &requests[0];
    assert!(poll.starts_with("GET /metadata/latest/keypair/command?wait=60 HTTP/1.1\r\n"), "{poll}");
    assert!(poll.contains(&format!("host: {}\r\n", service.channel.base.authority())), "{poll}");
    assert!(poll.ends_with("\r\n\r\n") && !poll.contains("content-length"), "{poll}");
    let store = &requests[1];
    assert!(store.starts_with("PUT /metadata/latest/keypair/results/c-1 HTTP/1.1\r\n"), "{store}");
    assert!(store.ends_with("\r\n\r\n{\"commandId\":\"c-1\"}"), "{store}");
    assert!(requests[2].starts_with("PUT /metadata/latest/keypair/agent HTTP/1.1\r\n"));
}

/// KP-3.5.
#[tokio::test]
async fn instance_id_is_read_bare_or_as_json_string() {
    for body in ["i-eumm0000d6", "\"i-eumm0000d6\"", " i-eumm0000d6\r\n", "\n\"i-eumm0000d6\"\n"] {
        let id = FakeService::new(vec![ok_response(body)]).await.channel.fetch_instance_id().await.unwrap();
        assert_eq!(id.as_str(), "i-eumm0000d6", "{body:?}");
    }
    for body in ["", " ", "\"\"", "\"i-1", "i 1", "[\"i-1\"]x y", "<html>no such page</html> ", "\u{e4}"] {
        let id = FakeService::new(vec![ok_response(body)]).await.channel.fetch_instance_id().await;
        assert_eq!(id, Err(ChannelError::Unusable(UnusableResponse::InstanceId)), "{body:?}");
    }
    let id = FakeService::new(vec![status_response("404 Not Found")]).await.channel.fetch_instance_id().await;
    assert_eq!(id, Err(ChannelError::Status { status: 404, retry_after: None }));
}

/// KP-3.7.
#[tokio::test]
async fn poll_status_204_and_404_give_no_command() {
    assert_eq!(
        FakeService::new(vec![write_text("HTTP/1.1 204 No Content\r\n\r\n")]).await.poll_once().await,
        Ok(Polled::NoCommand)
    );
    assert_eq!(
        FakeService::new(vec![status_response("404 Not Found")]).await.poll_once().await,
        Ok(Polled::NoQueue(None))
    );
    let later = write_text("HTTP/1.1 404 Not Found\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(FakeService::new(vec![later]).await.poll_once().await, Ok(Polled::NoQueue(Some(7 * SECOND))));
    assert_eq!(command_bytes(FakeService::new(vec![ok_response("")]).await.poll_once().await), b"");
}

#[tokio::test]
async fn status_204_with_body_gives_no_command() {
    let with_body = "HTTP/1.1 204 No Content\r\ncontent-length: 9\r\n\r\nsurprise!";
    for steps in [
        vec![write_text(with_body)],
        vec![write_text(with_body), Hang],
        vec![WriteBytes(format!("{with_body}HTTP/1.1 200 OK\r\n\r\n").into())],
    ] {
        assert_eq!(FakeService::new(steps).await.poll_once().await, Ok(Polled::NoCommand));
    }
}

/// KP-3.2.
#[tokio::test]
async fn redirect_is_not_followed() {
    let elsewhere = FakeService::new(vec![ok_response("{}")]).await;
    let base = &elsewhere.channel.base;
    let redirect = write_text(&format!(
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: {base}\r\ncontent-length: 0\r\n\r\n"
    ));
    let service = FakeService::new(vec![redirect]).await;
    let expected = ChannelError::Status { status: 307, retry_after: None };
    assert_eq!(service.poll_once().await, Err(expected.clone()));
    assert_eq!(service.store_sample_result().await, Err(expected.clone()));
    assert!(!expected.is_final());
    assert!(elsewhere.requests.lock().unwrap().is_empty());
}

/// KP-3.9.
#[tokio::test]
async fn result_status_decides_final_or_retry() {
    for (line, expected) in [
        ("200 OK", StoreResponse::Accepted),
        ("201 Created", StoreResponse::Accepted),
        ("204 No Content", StoreResponse::Accepted),
        ("404 Not Found", StoreResponse::Unknown),
        ("409 Conflict", StoreResponse::Conflict),
        ("400 Bad Request", StoreResponse::Refused(400)),
        ("403 Forbidden", StoreResponse::Refused(403)),
        ("413 Too Large", StoreResponse::Refused(413)),
    ] {
        assert_eq!(
            FakeService::new(vec![status_response(line)]).await.store_sample_result().await,
            Ok(expected),
            "{line}"
        );
    }
    for code in [302, 401, 408, 429, 500, 502, 503, 599] {
        let stored =
            FakeService::new(vec![status_response(&format!("{code} So"))]).await.store_sample_result().await;
        assert_eq!(stored, Err(ChannelError::Status { status: code, retry_after: None }));
    }
}

#[tokio::test]
async fn retry_after_of_error_status_is_reported() {
    let service = FakeService::new(vec![write_text(
        "HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-length: 4\r\n\r\nbusy",
    )])
    .await;
    assert_eq!(service.poll_once().await.unwrap_err().retry_after(), Some(7 * SECOND));
    assert_eq!(service.store_sample_result().await.unwrap_err().retry_after(), Some(7 * SECOND));
}

#[tokio::test]
async fn announce_accepts_404_and_reports_other_errors() {
    let announce =
        async |line| FakeService::new(vec![status_response(line)]).await.channel.announce("{}").await;
    assert_eq!(announce("404 Not Found").await, Ok(()));
    assert!(announce("405 Method Not Allowed").await.unwrap_err().is_final());
    assert!(!announce("500 Oops").await.unwrap_err().is_final());
}

/// KP-3.4.
#[tokio::test]
async fn body_over_64_kib_is_refused() {
    let limit = "x".repeat(MAX_BODY_BYTES);
    assert_eq!(
        command_bytes(FakeService::new(vec![ok_response(&limit)]).await.poll_once().await).len(),
        MAX_BODY_BYTES
    );
    let too_large = Err(ChannelError::Unusable(UnusableResponse::TooLarge));
    assert_eq!(FakeService::new(vec![ok_response(&format!("{limit}x"))]).await.poll_once().await, too_large);
    // The size is announced, so the channel does not even wait for the first byte.
    let announced = write_text("HTTP/1.1 200 OK\r\ncontent-length: 10485760\r\n\r\n");
    assert_eq!(FakeService::new(vec![announced, Hang]).await.poll_once().await, too_large);
    // The size is not announced: the body is chunked, or ends with the connection.
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(4096)).repeat(2560);
    let chunked =
        write_text(&format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunk}0\r\n\r\n"));
    assert_eq!(FakeService::new(vec![chunked]).await.poll_once().await, too_large);
    let endless = WriteBytes([b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'x'; 10 << 20]].concat());
    assert_eq!(FakeService::new(vec![endless]).await.poll_once().await, too_large);
}

#[tokio::test]
async fn body_is_read_in_every_framing() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{\"\r\n3;a=b\r\na\":\r\n2\r\n1}\r\n0\r\nx: y\r\n\r\n";
    assert_eq!(
        command_bytes(FakeService::new(vec![write_text(chunked)]).await.poll_once().await),
        br#"{"a":1}"#
    );
    let until_the_end = FakeService::new(vec![write_text("HTTP/1.0 200 OK\r\n\r\n{}")]).await;
    assert_eq!(command_bytes(until_the_end.poll_once().await), b"{}");
    // The answer arrives in pieces, and the service closes the connection directly after the last byte.
    let bytes = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
    let pieces =
        bytes.bytes().flat_map(|byte| [WriteBytes(vec![byte]), Sleep(Duration::from_millis(1))]).collect();
    assert_eq!(command_bytes(FakeService::new(pieces).await.poll_once().await), b"{}");
    // An informational answer arrives before the final answer.
    let informed =
        write_text("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(FakeService::new(vec![informed]).await.poll_once().await, Ok(Polled::NoCommand));
}

/// KP-3.4.
#[tokio::test]
async fn interim_responses_over_eight_are_refused() {
    let hint = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    let end = "HTTP/1.1 204 No Content\r\n\r\n";
    let eight = FakeService::new(vec![write_text(&format!("{}{end}", hint.repeat(8)))]).await;
    assert_eq!(eight.poll_once().await, Ok(Polled::NoCommand));
    let too_many = Err(ChannelError::Unusable(UnusableResponse::TooManyInterim));
    // The 1xx answers arrive in one piece, one by one without a final answer, or without end.
    let one_by_one =
        (0..9).flat_map(|_| [write_text(hint), Sleep(Duration::from_millis(5))]).chain([Hang]).collect();
    for steps in [
        vec![write_text(&format!("{}{end}", hint.repeat(9)))],
        one_by_one,
        vec![write_text(&hint.repeat(200_000))],
    ] {
        assert_eq!(FakeService::new(steps).await.poll_once().await, too_many);
    }
}

/// KP-3.4.
#[tokio::test]
async fn non_http_response_is_unusable() {
    let not_http = Err(ChannelError::Unusable(UnusableResponse::NotHttp));
    let flood = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(200));
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    for text in [
        "SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
        "HTTP/2 200\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        "\u{0}\u{1}\u{2}\u{3}\r\n\r\n",
        &flood,
        &long,
    ] {
        let polled = FakeService::new(vec![write_text(text), Hang]).await.poll_once().await;
        assert_eq!(polled, not_http, "{:?}", text.get(..40));
    }
}

#[tokio::test]
async fn disconnect_reports_time_waited() {
    for steps in [
        vec![],
        vec![write_text("HTTP/1.1 200 OK\r\n")],
        vec![write_text("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{")],
        vec![write_text("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{")],
    ] {
        let steps = [vec![Sleep(Duration::from_millis(100))], steps].concat();
        match FakeService::new(steps).await.poll_once().await {
            Err(ChannelError::Disconnected { waited }) => {
                assert!(waited >= Duration::from_millis(100), "{waited:?}")
            }
            other => panic!("{other:?}"),
        }
    }
}

/// KP-3.4.
#[tokio::test]
async fn call_timeout_bounds_whole_call() {
    let drip = |head: &str| {
        let rest = (0..200).flat_map(|_| [Sleep(Duration::from_millis(50)), write_text("x")]);
        [vec![write_text(head)], rest.collect()].concat()
    };
    for steps in [
        vec![Hang],
        vec![write_text("HTTP/1.1 200 OK\r\n"), Hang],
        vec![write_text("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{"), Hang],
        drip("HTTP/1.1 200 OK\r\ncontent-length: 200\r\n\r\n"),
        drip("HTTP/1.1 200 OK\r\nx: "),
    ] {
        let begun = Instant::now();
        let service = FakeService::with_short_timeout(steps).await;
        assert_eq!(service.poll_once().await, Err(ChannelError::TimedOut(Duration::from_millis(300))));
        assert_eq!(
            service.store_sample_result().await,
            Err(ChannelError::TimedOut(Duration::from_millis(300)))
        );
        assert!(begun.elapsed() < 2 * SECOND, "{:?}", begun.elapsed());
    }
}

/// KP-3.4.
#[tokio::test]
async fn long_poll_wait_extends_call_timeout() {
    let steps = vec![Sleep(Duration::from_millis(1150)), write_text("HTTP/1.1 204 No Content\r\n\r\n")];
    let service = FakeService::with_short_timeout(steps).await;
    assert_eq!(service.channel.poll_command(SECOND).await, Ok(Polled::NoCommand));
}

#[tokio::test]
async fn closed_port_is_reported_as_refused() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let channel = HttpChannel::new(format!("http://{closed}").parse().unwrap());
    assert_eq!(channel.poll_command(Duration::ZERO).await, Err(ChannelError::ConnectionRefused));
}

#[tokio::test]
async fn errors_never_quote_response_text() {
    for text in [
        "SECRET\r\n\r\n",
        "HTTP/1.1 500 SECRET\r\nretry-after: SECRET\r\n\r\nSECRET",
        "HTTP/1.1 302 x\r\nlocation: SECRET\r\n\r\n",
    ] {
        let error = FakeService::new(vec![write_text(text)]).await.poll_once().await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("SECRET"), "{error:?}");
    }
    let id = FakeService::new(vec![ok_response("not an id SECRET")])
        .await
        .channel
        .fetch_instance_id()
        .await
        .unwrap_err();
    assert!(!format!("{id} {id:?}").contains("SECRET"));
    let polled = FakeService::new(vec![ok_response("SECRET")]).await.poll_once().await;
    assert!(!format!("{polled:?}").contains("SECRET"));
}
