//! The HTTP channel against a service that misbehaves in every way we could think of.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// What the fake service does, step by step, once it has read the request.
#[derive(Clone)]
enum Step {
    Say(Vec<u8>),
    Sleep(Duration),
    Hang,
}

use Step::{Hang, Say, Sleep};

fn say(text: &str) -> Step {
    Say(text.as_bytes().to_vec())
}

fn ok(body: &str) -> Step {
    say(&format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
}

fn status(line: &str) -> Step {
    say(&format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\n\r\n"))
}

struct Service {
    channel: HttpChannel,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Service {
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
                            Say(bytes) => stream.write_all(&bytes).await,
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

    async fn impatient(steps: Vec<Step>) -> Self {
        let mut service = Self::new(steps).await;
        service.channel.call_limit = Duration::from_millis(300);
        service
    }

    async fn next(&self) -> Result<Polled, ChannelError> {
        self.channel.next(Duration::ZERO).await
    }

    async fn store(&self) -> Result<Stored, ChannelError> {
        self.channel.store(&"c-1".parse().unwrap(), r#"{"commandId":"c-1"}"#).await
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

fn delivered(polled: Result<Polled, ChannelError>) -> Vec<u8> {
    match polled {
        Ok(Polled::Command(delivery)) => delivery.bytes,
        other => panic!("{other:?}"),
    }
}

/// KP-3.1.
#[tokio::test]
async fn what_goes_over_the_wire() {
    let service = Service::new(vec![ok(r#"{"commandId":"x"}"#)]).await;
    let polled = service.channel.next(60 * SECOND).await;
    assert_eq!(delivered(polled), br#"{"commandId":"x"}"#);
    assert_eq!(service.store().await, Ok(Stored::Accepted));
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
async fn instance_ids() {
    for body in ["i-eumm0000d6", "\"i-eumm0000d6\"", " i-eumm0000d6\r\n", "\n\"i-eumm0000d6\"\n"] {
        let id = Service::new(vec![ok(body)]).await.channel.instance_id().await.unwrap();
        assert_eq!(id.as_str(), "i-eumm0000d6", "{body:?}");
    }
    for body in ["", " ", "\"\"", "\"i-1", "i 1", "[\"i-1\"]x y", "<html>no such page</html> ", "\u{e4}"] {
        let id = Service::new(vec![ok(body)]).await.channel.instance_id().await;
        assert_eq!(id, Err(ChannelError::Unusable(Unusable::InstanceId)), "{body:?}");
    }
    let id = Service::new(vec![status("404 Not Found")]).await.channel.instance_id().await;
    assert_eq!(id, Err(ChannelError::Status { status: 404, retry_after: None }));
}

/// KP-3.7.
#[tokio::test]
async fn nothing_and_no_queue() {
    assert_eq!(
        Service::new(vec![say("HTTP/1.1 204 No Content\r\n\r\n")]).await.next().await,
        Ok(Polled::Nothing)
    );
    assert_eq!(Service::new(vec![status("404 Not Found")]).await.next().await, Ok(Polled::NoQueue(None)));
    let later = say("HTTP/1.1 404 Not Found\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(Service::new(vec![later]).await.next().await, Ok(Polled::NoQueue(Some(7 * SECOND))));
    assert_eq!(delivered(Service::new(vec![ok("")]).await.next().await), b"");
}

#[tokio::test]
async fn a_204_with_a_body_is_a_204() {
    let with_body = "HTTP/1.1 204 No Content\r\ncontent-length: 9\r\n\r\nsurprise!";
    for steps in [
        vec![say(with_body)],
        vec![say(with_body), Hang],
        vec![Say(format!("{with_body}HTTP/1.1 200 OK\r\n\r\n").into())],
    ] {
        assert_eq!(Service::new(steps).await.next().await, Ok(Polled::Nothing));
    }
}

/// KP-3.2.
#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Service::new(vec![ok("{}")]).await;
    let base = &elsewhere.channel.base;
    let redirect =
        say(&format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: {base}\r\ncontent-length: 0\r\n\r\n"));
    let service = Service::new(vec![redirect]).await;
    let expected = ChannelError::Status { status: 307, retry_after: None };
    assert_eq!(service.next().await, Err(expected.clone()));
    assert_eq!(service.store().await, Err(expected.clone()));
    assert!(!expected.is_final());
    assert!(elsewhere.requests.lock().unwrap().is_empty());
}

/// KP-3.9.
#[tokio::test]
async fn what_is_final_for_a_result() {
    for (line, expected) in [
        ("200 OK", Stored::Accepted),
        ("201 Created", Stored::Accepted),
        ("204 No Content", Stored::Accepted),
        ("404 Not Found", Stored::Unknown),
        ("409 Conflict", Stored::Conflict),
        ("400 Bad Request", Stored::Refused(400)),
        ("403 Forbidden", Stored::Refused(403)),
        ("413 Too Large", Stored::Refused(413)),
    ] {
        assert_eq!(Service::new(vec![status(line)]).await.store().await, Ok(expected), "{line}");
    }
    for code in [302, 401, 408, 429, 500, 502, 503, 599] {
        let stored = Service::new(vec![status(&format!("{code} So"))]).await.store().await;
        assert_eq!(stored, Err(ChannelError::Status { status: code, retry_after: None }));
    }
}

#[tokio::test]
async fn a_pause_asked_for_is_told() {
    let service =
        Service::new(vec![say("HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-length: 4\r\n\r\nbusy")]).await;
    assert_eq!(service.next().await.unwrap_err().retry_after(), Some(7 * SECOND));
    assert_eq!(service.store().await.unwrap_err().retry_after(), Some(7 * SECOND));
}

#[tokio::test]
async fn announcing_to_someone_who_does_not_want_to_know() {
    let announce = async |line| Service::new(vec![status(line)]).await.channel.announce("{}").await;
    assert_eq!(announce("404 Not Found").await, Ok(()));
    assert!(announce("405 Method Not Allowed").await.unwrap_err().is_final());
    assert!(!announce("500 Oops").await.unwrap_err().is_final());
}

/// KP-3.4.
#[tokio::test]
async fn sixty_four_kib_and_no_more() {
    let limit = "x".repeat(BODY_MAX);
    assert_eq!(delivered(Service::new(vec![ok(&limit)]).await.next().await).len(), BODY_MAX);
    let too_large = Err(ChannelError::Unusable(Unusable::TooLarge));
    assert_eq!(Service::new(vec![ok(&format!("{limit}x"))]).await.next().await, too_large);
    // Announced, so not even the beginning is waited for.
    let announced = say("HTTP/1.1 200 OK\r\ncontent-length: 10485760\r\n\r\n");
    assert_eq!(Service::new(vec![announced, Hang]).await.next().await, too_large);
    // Not announced: by chunks, and by the end of the connection.
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(4096)).repeat(2560);
    let chunked = say(&format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunk}0\r\n\r\n"));
    assert_eq!(Service::new(vec![chunked]).await.next().await, too_large);
    let endless = Say([b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'x'; 10 << 20]].concat());
    assert_eq!(Service::new(vec![endless]).await.next().await, too_large);
}

#[tokio::test]
async fn ways_to_send_a_body() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{\"\r\n3;a=b\r\na\":\r\n2\r\n1}\r\n0\r\nx: y\r\n\r\n";
    assert_eq!(delivered(Service::new(vec![say(chunked)]).await.next().await), br#"{"a":1}"#);
    let until_the_end = Service::new(vec![say("HTTP/1.0 200 OK\r\n\r\n{}")]).await;
    assert_eq!(delivered(until_the_end.next().await), b"{}");
    // In pieces, and the connection closed right behind the last byte.
    let bytes = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
    let pieces = bytes.bytes().flat_map(|byte| [Say(vec![byte]), Sleep(Duration::from_millis(1))]).collect();
    assert_eq!(delivered(Service::new(pieces).await.next().await), b"{}");
    // An answer before the request was asked for its body.
    let informed = say("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(Service::new(vec![informed]).await.next().await, Ok(Polled::Nothing));
}

/// KP-3.4.
#[tokio::test]
async fn eight_interim_answers_and_no_more() {
    let hint = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    let end = "HTTP/1.1 204 No Content\r\n\r\n";
    let eight = Service::new(vec![say(&format!("{}{end}", hint.repeat(8)))]).await;
    assert_eq!(eight.next().await, Ok(Polled::Nothing));
    let too_many = Err(ChannelError::Unusable(Unusable::TooManyInterim));
    // In one piece; one by one and no answer; without an end.
    let one_by_one =
        (0..9).flat_map(|_| [say(hint), Sleep(Duration::from_millis(5))]).chain([Hang]).collect();
    for steps in
        [vec![say(&format!("{}{end}", hint.repeat(9)))], one_by_one, vec![say(&hint.repeat(200_000))]]
    {
        assert_eq!(Service::new(steps).await.next().await, too_many);
    }
}

/// KP-3.4.
#[tokio::test]
async fn answers_that_are_not_http() {
    let not_http = Err(ChannelError::Unusable(Unusable::NotHttp));
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
        let polled = Service::new(vec![say(text), Hang]).await.next().await;
        assert_eq!(polled, not_http, "{:?}", text.get(..40));
    }
}

#[tokio::test]
async fn a_cut_says_how_long_it_had_waited() {
    for steps in [
        vec![],
        vec![say("HTTP/1.1 200 OK\r\n")],
        vec![say("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{")],
        vec![say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{")],
    ] {
        let steps = [vec![Sleep(Duration::from_millis(100))], steps].concat();
        match Service::new(steps).await.next().await {
            Err(ChannelError::Cut { waited }) => assert!(waited >= Duration::from_millis(100), "{waited:?}"),
            other => panic!("{other:?}"),
        }
    }
}

/// KP-3.4.
#[tokio::test]
async fn one_clock_bounds_a_whole_call() {
    let drip = |head: &str| {
        let rest = (0..200).flat_map(|_| [Sleep(Duration::from_millis(50)), say("x")]);
        [vec![say(head)], rest.collect()].concat()
    };
    for steps in [
        vec![Hang],
        vec![say("HTTP/1.1 200 OK\r\n"), Hang],
        vec![say("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{"), Hang],
        drip("HTTP/1.1 200 OK\r\ncontent-length: 200\r\n\r\n"),
        drip("HTTP/1.1 200 OK\r\nx: "),
    ] {
        let begun = Instant::now();
        let service = Service::impatient(steps).await;
        assert_eq!(service.next().await, Err(ChannelError::TimedOut(Duration::from_millis(300))));
        assert_eq!(service.store().await, Err(ChannelError::TimedOut(Duration::from_millis(300))));
        assert!(begun.elapsed() < 2 * SECOND, "{:?}", begun.elapsed());
    }
}

/// KP-3.4.
#[tokio::test]
async fn a_long_poll_may_take_its_wait_and_then_some() {
    let steps = vec![Sleep(Duration::from_millis(1150)), say("HTTP/1.1 204 No Content\r\n\r\n")];
    let service = Service::impatient(steps).await;
    assert_eq!(service.channel.next(SECOND).await, Ok(Polled::Nothing));
}

#[tokio::test]
async fn nobody_there() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let channel = HttpChannel::new(format!("http://{closed}").parse().unwrap());
    assert_eq!(channel.next(Duration::ZERO).await, Err(ChannelError::Refused));
}

#[tokio::test]
async fn no_error_repeats_what_came() {
    for text in [
        "SECRET\r\n\r\n",
        "HTTP/1.1 500 SECRET\r\nretry-after: SECRET\r\n\r\nSECRET",
        "HTTP/1.1 302 x\r\nlocation: SECRET\r\n\r\n",
    ] {
        let error = Service::new(vec![say(text)]).await.next().await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("SECRET"), "{error:?}");
    }
    let id = Service::new(vec![ok("not an id SECRET")]).await.channel.instance_id().await.unwrap_err();
    assert!(!format!("{id} {id:?}").contains("SECRET"));
    let polled = Service::new(vec![ok("SECRET")]).await.next().await;
    assert!(!format!("{polled:?}").contains("SECRET"));
}
