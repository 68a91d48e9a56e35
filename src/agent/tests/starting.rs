//! From the start to `READY=1`.

use nix::errno::Errno;

use super::fakes::*;
use crate::channel::state::Phase;
use crate::channel::{ChannelError, Polled};
use crate::transaction::state::StoredResult;

/// KP-3.5, KP-3.8, KP-7.5.
#[tokio::test(start_paused = true)]
async fn in_this_order() {
    let mut world = World::new();
    world.room.undelivered =
        Some(StoredResult { command_id: "c-0".parse().unwrap(), result: "result-c-0".into() });
    let diary = world.polls([command("c-1"), Ok(Polled::Nothing)]).for_seconds(1).await.diary;
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
async fn a_configured_id_is_not_asked_for() {
    let mut world = World::new();
    world.room.configured = Some("i-configured".parse().unwrap());
    let diary = world.for_seconds(1).await.diary;
    assert_eq!(diary.count("instance-id"), 0);
    assert!(diary.place("adopt i-configured") < diary.place("next"));
}

/// KP-3.5, KP-3.17.
#[tokio::test(start_paused = true)]
async fn no_command_is_taken_before_the_id_is_known() {
    let world = World::new();
    for failure in [status(404), Err(ChannelError::Refused), status(500)] {
        world.service.instance.borrow_mut().push_back((SECOND / 10, failure));
    }
    let ran = world.for_seconds(9).await;
    // Delays of 1, 2 and 4 s.
    assert_eq!(ran.diary.times("instance-id"), [0, 1100, 3200, 7300]);
    assert_eq!(ran.diary.times("next"), [7300]);
    // A 404, and a refusal a second later: nobody is there, as far as can be told.
    assert_eq!(ran.diary.times("READY=1"), [1200]);
    assert_eq!(ran.state.state, Phase::Polling);
    assert_eq!(ran.state.last_poll_succeeded, None);
}

#[tokio::test(start_paused = true)]
async fn an_id_that_is_not_taken_stops_no_command_and_is_offered_again() {
    let mut world = World::new();
    world.room.adoptions.extend([Err("refused".into()), Err("refused".into())]);
    world.room.recovered = Err("not undone".into());
    let diary = world.polls([command("c-1")]).for_seconds(10).await.diary;
    assert_eq!(diary.count("adopt i-1"), 3);
    assert_eq!(diary.count("perform"), 1);
}

/// KP-3.17, KP-3.18.
#[tokio::test(start_paused = true)]
async fn ready_comes_after_what_was_queued() {
    let world = World::new().polls([command("c-1"), command("c-2"), Ok(Polled::Nothing)]);
    let diary = world.for_seconds(3).await.diary;
    assert_eq!(diary.count("next 0"), 3);
    assert!(diary.place("READY=1") > diary.place("store c-2"));
    assert_eq!(diary.times("READY=1"), [0]);
    assert_eq!(diary.times("next 60"), [2000]);
}

/// KP-3.17.
#[tokio::test(start_paused = true)]
async fn ready_comes_with_the_first_404() {
    let diary = World::new().polls([Ok(Polled::NoQueue(None))]).for_seconds(1).await.diary;
    assert_eq!(diary.times("READY=1"), [0]);
    assert_eq!(diary.count("announce"), 1);
}

/// KP-3.17.
#[tokio::test(start_paused = true)]
async fn ready_comes_after_five_seconds_whatever_is_in_flight() {
    let world = World::new();
    world.service.instance.borrow_mut().push_back((100 * SECOND, Ok("i-1")));
    assert_eq!(world.for_seconds(50).await.diary.times("READY=1"), [5000]);
    let world = World::new();
    world.service.next.borrow_mut().push_back((8 * SECOND, Ok(Polled::Nothing)));
    let diary = world.for_seconds(50).await.diary;
    assert_eq!(diary.times("READY=1"), [5000]);
    assert_eq!(diary.times("next"), [0, 8000]);
    assert_eq!(diary.count("next 60"), 1);
}

/// KP-3.18.
#[tokio::test(start_paused = true)]
async fn without_a_network_it_asks_four_times_a_second_until_ready() {
    let no_way = || Err(ChannelError::NoWay(Errno::ENETUNREACH));
    let world = World::new();
    world
        .service
        .instance
        .borrow_mut()
        .extend((0..4).map(|_| (SECOND / 1000, Err(ChannelError::NoWay(Errno::EHOSTUNREACH)))));
    let diary = world.polls((0..100).map(|_| no_way())).for_seconds(11).await.diary;
    let early = diary.times("next 0");
    assert!((14..=16).contains(&early.len()), "{early:?}");
    assert!(early.windows(2).all(|pair| pair[1] - pair[0] == 250), "{early:?}");
    // From then on as after any failure: the first delay is a second, the second two.
    let later = diary.times("next 60");
    assert_eq!(later.len(), 3, "{later:?}");
    assert_eq!((later[1] - later[0], later[2] - later[1]), (1000, 2000));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_no_missing_network() {
    let world = World::new().polls((0..3).map(|_| Err(ChannelError::Forbidden(Errno::EACCES))));
    let ran = world.for_seconds(2).await;
    assert_eq!(ran.diary.times("next 0"), [0, 1000]);
    assert!(ran.state.failure.unwrap().contains("the route forbids it"));
}
