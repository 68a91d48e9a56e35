//! Tests of SIGTERM, of the watchdog, and of `run` as a whole.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::Instant as RealInstant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::advance;

use super::fakes::*;
use crate::agent::*;
use crate::channel::Polled;

/// Returns when a command is in flight.
async fn wait_until_in_flight(diary: CallLog) {
    while diary.count("perform") == 0 {
        tokio::task::yield_now().await;
    }
}

/// KP-8.13.
#[tokio::test(start_paused = true)]
async fn idle_agent_stops_at_once() {
    let diary = AgentFixture::new().run_for_seconds(10).await.diary;
    assert_eq!(diary.times("STOPPING=1"), [10_000]);
    assert_eq!(diary.times("end"), [10_000]);
}

#[tokio::test(start_paused = true)]
async fn agent_waiting_to_deliver_stops_at_once() {
    let world = AgentFixture::new();
    world.service.store.borrow_mut().extend((0..9).map(|_| (SECOND, status_error(500))));
    assert_eq!(
        world.with_polls([polled_command("c-1")]).run_for_seconds(10).await.diary.times("end"),
        [10_000]
    );
}

#[tokio::test(start_paused = true)]
async fn command_in_flight_at_stop_gets_one_delivery_try() {
    for (after, expected) in [(SECOND, true), (60 * SECOND, false)] {
        let (_sender, hold) = mpsc::channel();
        let mut world = AgentFixture::new();
        world.room.hold = Some(hold);
        world.service.store.borrow_mut().push_back((after, Ok(crate::channel::StoreResponse::Accepted)));
        let seen = world.diary.clone();
        let diary = world
            .with_polls([polled_command("c-1"), polled_command("c-2")])
            .run_loop_until(wait_until_in_flight(seen))
            .await
            .diary;
        assert!(diary.first_index("STOPPING=1") < diary.first_index("perform stopped"));
        assert_eq!((diary.count("perform"), diary.count("store c-1"), diary.count("next")), (2, 1, 1));
        assert_eq!(diary.count("delivered c-1") == 1, expected);
        assert!(diary.times("end")[0] <= 2000);
    }
}

/// KP-8.13.
#[tokio::test(start_paused = true)]
async fn unresponsive_command_is_abandoned_after_fifteen_seconds() {
    let (sender, hold) = mpsc::channel();
    let mut world = AgentFixture::new();
    world.room.hold = Some(hold);
    world.room.heeds_stop = false;
    let seen = world.diary.clone();
    let clock = async {
        wait_until_in_flight(seen.clone()).await;
        // A blocking call stops the test's clock, so the test advances it by hand.
        while seen.count("end") == 0 {
            advance(SECOND / 4).await;
        }
    };
    let (ran, ()) = tokio::join!(
        world.with_polls([polled_command("c-1")]).run_loop_until(wait_until_in_flight(seen.clone())),
        clock
    );
    let waited = ran.diary.times("end")[0] - ran.diary.times("STOPPING=1")[0];
    assert!((15_000..=15_500).contains(&waited), "{waited}");
    assert_eq!(ran.diary.count("store"), 0);
    // The thread must end before the test ends.
    sender.send(()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn watchdog_is_notified_at_half_its_interval() {
    let mut world = AgentFixture::new();
    world.watchdog = Some(30 * SECOND);
    let diary = world.run_for_seconds(65).await.diary;
    assert_eq!(diary.times("WATCHDOG=1"), [15_000, 30_000, 45_000, 60_000]);
    assert_eq!(AgentFixture::new().run_for_seconds(65).await.diary.count("WATCHDOG=1"), 0);
}

#[tokio::test(start_paused = true)]
async fn watchdog_is_notified_while_command_is_in_flight() {
    let (sender, hold) = mpsc::channel();
    let mut world = AgentFixture::new();
    world.room.hold = Some(hold);
    world.watchdog = Some(30 * SECOND);
    let seen = world.diary.clone();
    let stop = async {
        wait_until_in_flight(seen.clone()).await;
        while seen.count("WATCHDOG=1") < 3 {
            advance(SECOND / 4).await;
        }
        sender.send(()).unwrap();
        while seen.count("store") == 0 {
            tokio::task::yield_now().await;
        }
    };
    let diary =
        world.with_polls([polled_command("c-1"), Ok(Polled::NoCommand)]).run_loop_until(stop).await.diary;
    assert!(diary.first_index("WATCHDOG=1") < diary.first_index("store c-1"));
    assert_eq!(diary.count("READY=1"), 1);
}

/// Tests the whole of `run`, with real sockets, real signals and a second instance beside it.
#[test]
fn run_serves_and_ends_with_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base_url: BaseUrl = format!("http://{}/latest", listener.local_addr().unwrap()).parse().unwrap();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap();
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let answer: &[u8] = if request.contains("/instance-id") {
                b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\ni-1"
            } else if request.contains("wait=60") {
                b""
            } else {
                b"HTTP/1.1 204 No Content\r\n\r\n"
            };
            stream.write_all(answer).unwrap();
            if answer.is_empty() {
                held.push(stream);
            }
        }
    });
    let settings = AgentSettings { base_url, long_poll: 60 * SECOND, run_dir: dir.path().to_owned() };
    let room = || {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(async { AgentFixture::new().room })
    };
    let (first, second) = (settings.clone(), settings);
    let (first_engine, second_engine) = (room(), room());
    let running = std::thread::spawn(move || run(first, first_engine));
    let deadline = RealInstant::now() + 20 * SECOND;
    let polled = || {
        crate::channel::state::ChannelStatus::read(dir.path())
            .is_ok_and(|state| state.last_poll_succeeded == Some(true))
    };
    while !polled() {
        assert!(RealInstant::now() < deadline);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(crate::channel::run_lock::find_lock_holder(dir.path()), Some(Some(std::process::id())));
    let refused = run(second, second_engine).unwrap_err();
    assert!(refused.to_string().contains("at work"), "{refused}");
    // SIGHUP is ignored. After two seconds, the long poll is in flight.
    kill(Pid::this(), Signal::SIGHUP).unwrap();
    std::thread::sleep(Duration::from_millis(2500));
    assert!(!running.is_finished());
    let told = RealInstant::now();
    kill(Pid::this(), Signal::SIGTERM).unwrap();
    running.join().unwrap().unwrap();
    assert!(told.elapsed() < 2 * SECOND, "{:?}", told.elapsed());
    assert_eq!(crate::channel::run_lock::find_lock_holder(dir.path()), None);
}
