//! Responses while a store fails: the two rows of KP-9.3 that no request causes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use support::postgres::Postgres;
use support::{REGION, Server, controlplane_command, create_temp_dir};

/// KP-9.3, KP-9.11.
#[test]
fn store_unreachable_is_internal_error() {
    let Some(postgres) = Postgres::start() else { return };
    let server = Server::start(&["--instance", "i-1", "--store", &postgres.url()]);
    server.import("k", 1).result();
    drop(postgres);
    for response in [server.import("l", 2), server.call_api("GET", &format!("{REGION}/keypairs"), "")] {
        response.assert_error(500, "INTERNAL", "Internal server error");
    }
    let response = server.guest("i-1").get("/keypair/command?wait=0");
    assert_eq!((response.status, response.body.as_str()), (503, "the store is not available\n"));
    response.assert_retry_after();
    let numbers = server.call_api("GET", "/metrics", "").body;
    assert!(numbers.contains("\nkeypair_polls_total{answer=\"failed\"} 1\n"), "{numbers}");
    let (status, log) = server.stop_with_signal("TERM");
    assert!(status.success() && log.contains("the store failed: "), "{log}");
}

/// Starts a proxy in front of the database. When the flag is set, it closes the connection at a COMMIT.
fn start_commit_cutter(socket: PathBuf) -> (u16, Arc<AtomicBool>) {
    let (listener, cut) = (TcpListener::bind("127.0.0.1:0").unwrap(), Arc::new(AtomicBool::new(false)));
    let (port, armed) = (listener.local_addr().unwrap().port(), cut.clone());
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, database) = (client.unwrap(), UnixStream::connect(&socket).unwrap());
            let (mut answers, mut to) = (database.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut answers, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
            let armed = armed.clone();
            std::thread::spawn(move || forward_until_commit(client, database, &armed));
        }
    });
    (port, cut)
}

fn forward_until_commit(mut client: TcpStream, mut database: UnixStream, cut: &AtomicBool) {
    let mut buffer = [0; 64 * 1024];
    while let Ok(length @ 1..) = client.read(&mut buffer) {
        let is_commit = buffer[..length].windows(6).any(|text| text == b"COMMIT");
        if is_commit && cut.load(Ordering::Relaxed) || database.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = database.shutdown(Shutdown::Both);
}

/// KP-9.3.
#[test]
fn commit_without_reply_is_unknown_error() {
    let Some(postgres) = Postgres::start() else { return };
    let (port, cut) = start_commit_cutter(postgres.socket());
    let url = format!("postgres://keypair@127.0.0.1:{port}/postgres");
    let server = Server::start(&["--instance", "i-1", "--attach-wait", "0", "--store", &url]);
    server.import("k", 1).result();
    cut.store(true, Ordering::Relaxed);
    server.attach("k", &["i-1"], "no").assert_error(500, "UNKNOWN", "Unknown server error");
    cut.store(false, Ordering::Relaxed);
    // The first attach may have been stored or not. In both cases the repeated attach leads to exactly one command.
    server.attach("k", &["i-1"], "no").assert_bound(&[], &["i-1"]);
    let guest = server.guest("i-1");
    let command = guest.poll(0);
    assert_eq!(guest.put_result(&command, "succeeded").status, 204);
    assert_eq!(guest.get("/keypair/command").status, 204);
}

#[test]
fn store_open_error_hides_password() {
    let here = create_temp_dir("not-a-store");
    let garbage = here.join("garbage.db");
    std::fs::write(&garbage, "this is no database".repeat(100)).unwrap();
    let cases = [
        (format!("sqlite:{}/none/x.db", here.display()), "make it first"),
        (format!("sqlite:{}", garbage.display()), "not a database"),
        ("postgres://me:hidden@127.0.0.1:1/db".to_owned(), "postgres://127.0.0.1:1/db: the store failed: "),
        ("postgres://me:hidden@127.0.0.1:1/db?x=1".to_owned(), "refused"),
    ];
    for (url, said) in cases {
        let output =
            controlplane_command().args(["serve", "--instance", "i-1", "--store", &url]).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{url}: {error}");
        assert!(
            error.contains("--store") && error.contains(said) && !error.contains("hidden"),
            "{url}: {error}"
        );
        assert!(output.stdout.is_empty());
    }
}
