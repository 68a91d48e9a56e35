//! Tests of the time from the start to `READY=1`.

use nix::errno::Errno;

use super::fakes::*;
use crate::channel::state::ChannelPhase;
use crate::channel::{ChannelError, Polled};
use crate::transaction::state::StoredResult;

/// KP-3.5, KP-3.8, KP-7.5.
#[tokio::test(start_paused = true)]
async fn startup_steps_run_in_order() {
    let mut world = AgentFixture::new();
    world.room.undelivered =
        Some(StoredResult { command_id: "c-0".parse().unwrap(), result: "result-c-0".into() });
    let diary =
        world.with_polls([polled_command("c-1"), Ok(Polled::NoCommand)]).run_for_seconds(1).await.diary;
    let lines = diary.lines();
    let deeds: Vec<_> = lines.iter().filter(|line| !line.starts_with("STATUS=")).collect();
    let expected = [
        "recover",
        "instance-id",
        "adopt i-1",
        "undelivered",
        "store c-0 result-c-0",
        "delivered c-0",
        "next 0",
        "perform",
        "store c-1 result-c-1",
        "delivered c-1",
        "next 0",
        "READY=1",
        "announce document",
        "STOPPING=1",
        "end",
    ];
    assert_eq!(deeds, expected);
    assert_eq!(lines[0], "STATUS=starting");
    assert!(lines.contains(&"STATUS=bound my-test; waiting for commands".to_owned()), "{lines:?}");
}

/// KP-3.5.
#[tokio::test(start_paused = true)]
async fn configured_instance_id_is_not_fetched() {
    let mut world = AgentFixture::new();
    world.room.configured = Some("i-configured".parse().unwrap());
    let diary = world.run_for_seconds(1).await.diary;
    assert_eq!(diary.count("instance-id"), 0);
    assert!(diary.first_index("adopt i-configured") < diary.first_index("next"));
}

/// KP-3.5, KP-3.17.
#[tokio::test(start_paused = true)]
async fn commands_wait_until_instance_id_is_known() {
    let world = AgentFixture::new();
    for failure in [status_error(404), Err(ChannelError::ConnectionRefused), status_error(500)] {
        world.service.instance.borrow_mut().push_back((SECOND / 10, failure));
    }
    let ran = world.run_for_seconds(9).await;
    // The back-off delays are 1, 2 and 4 s.
    assert_eq!(ran.diary.times("instance-id"), [0, 1100, 3200, 7300]);
    assert_eq!(ran.diary.times("next"), [7300]);
    // A 404, and a refused connection one second later: the agent concludes that there is no service.
    assert_eq!(ran.diary.times("READY=1"), [1200]);
    assert_eq!(ran.state.state, ChannelPhase::Polling);
    assert_eq!(ran.state.last_poll_succeeded, None);
}

#[tokio::test(start_paused = true)]
async fn failed_adoption_is_retried_and_blocks_no_command() {
    let mut world = AgentFixture::new();
    world.room.adoptions.extend([Err("refused".into()), Err("refused".into())]);
    world.room.recovered = Err("not undone".into());
    let diary = world.with_polls([polled_command("c-1")]).run_for_seconds(10).await.diary;
    assert_eq!(diary.count("adopt i-1"), 3);
    assert_eq!(diary.count("perform"), 1);
}

/// KP-3.17, KP-3.18.
#[tokio::test(start_paused = true)]
async fn ready_is_sent_after_queued_commands() {
    let world =
        AgentFixture::new().with_polls([polled_command("c-1"), polled_command("c-2"), Ok(Polled::NoCommand)]);
    let diary = world.run_for_seconds(3).await.diary;
    assert_eq!(diary.count("next 0"), 3);
    assert!(diary.first_index("READY=1") > diary.first_index("store c-2"));
    assert_eq!(diary.times("READY=1"), [0]);
    assert_eq!(diary.times("next 60"), [2000]);
}

/// KP-3.17.
#[tokio::test(start_paused = true)]
async fn ready_is_sent_on_first_404() {
    let diary = AgentFixture::new().with_polls([Ok(Polled::NoQueue(None))]).run_for_seconds(1).await.diary;
    assert_eq!(diary.times("READY=1"), [0]);
    assert_eq!(diary.count("announce"), 1);
}

/// KP-3.17.
#[tokio::test(start_paused = true)]
async fn ready_is_sent_after_five_seconds_in_any_case() {
    let world = AgentFixture::new();
    world.service.instance.borrow_mut().push_back((100 * SECOND, Ok("i-1")));
    assert_eq!(world.run_for_seconds(50).await.diary.times("READY=1"), [5000]);
    let world = AgentFixture::new();
    world.service.next.borrow_mut().push_back((8 * SECOND, Ok(Polled::NoCommand)));
    let diary = world.run_for_seconds(50).await.diary;
    assert_eq!(diary.times("READY=1"), [5000]);
    assert_eq!(diary.times("next"), [0, 8000]);
    assert_eq!(diary.count("next 60"), 1);
}

/// KP-3.18.
#[tokio::test(start_paused = true)]
async fn missing_network_is_retried_four_times_a_second_until_ready() {
    let no_way = || Err(ChannelError::Unreachable(Errno::ENETUNREACH));
    let world = AgentFixture::new();
    world
        .service
        .instance
        .borrow_mut()
        .extend((0..4).map(|_| (SECOND / 1000, Err(ChannelError::Unreachable(Errno::EHOSTUNREACH)))));
    let diary = world.with_polls((0..100).map(|_| no_way())).run_for_seconds(11).await.diary;
    let early = diary.times("next 0");
    assert!((14..=16).contains(&early.len()), "{early:?}");
    assert!(early.windows(2).all(|pair| pair[1] - pair[0] == 250), "{early:?}");
    // From now on the back-off of any failure applies: the first delay is one second, the second two.
    let later = diary.times("next 60");
    assert_eq!(later.len(), 3, "{later:?}");
    assert_eq!((later[1] - later[0], later[2] - later[1]), (1000, 2000));
}

#[tokio::test(start_paused = true)]
async fn forbidden_route_is_not_treated_as_missing_network() {
    let world = AgentFixture::new().with_polls((0..3).map(|_| Err(ChannelError::Forbidden(Errno::EACCES))));
    let ran = world.run_for_seconds(2).await;
    assert_eq!(ran.diary.times("next 0"), [0, 1000]);
    assert!(ran.state.failure.unwrap().contains("the route forbids it"));
}
