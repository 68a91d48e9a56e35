//! Polls: how far apart, what counts as a failure, what is said of it.

use super::fakes::*;
use crate::channel::state::Phase;
use crate::channel::{ChannelError, Polled, Unusable};
use crate::logging::capture::Captured;
use crate::transaction::perform::Performed;

/// KP-3.12.
#[tokio::test(start_paused = true)]
async fn polls_start_two_seconds_apart() {
    // A service that does not wait.
    let world = World::new().polls((0..5).map(|_| Ok(Polled::Nothing)));
    let diary = world.for_seconds(9).await.diary;
    assert_eq!(diary.times("next"), [0, 2000, 4000, 6000, 8000]);
    // One that does, is asked again at once.
    assert_eq!(World::new().for_seconds(150).await.diary.times("next"), [0, 2000, 62_000, 122_000]);
}

/// KP-3.12.
#[tokio::test(start_paused = true)]
async fn after_a_command_the_next_is_asked_for_at_once() {
    let diary =
        World::new().polls([command("c-1"), command("c-2"), command("c-3")]).for_seconds(1).await.diary;
    assert_eq!(diary.times("next"), [0, 0, 0, 0]);
}

/// KP-3.7, KP-3.13.
#[tokio::test(start_paused = true)]
async fn failures_are_tried_again_ever_more_rarely() {
    for failure in [
        Ok(Polled::NoQueue(None)),
        status(500),
        status(302),
        Err(ChannelError::Refused),
        Err(ChannelError::Unusable(Unusable::TooLarge)),
        Err(ChannelError::Cut { waited: SECOND }),
    ] {
        let polls =
            (0..9).map(|_| failure.clone()).chain([Ok(Polled::Nothing), failure.clone(), failure.clone()]);
        let times = World::new().polls(polls).for_seconds(300).await.diary.times("next");
        let pauses: Vec<_> = times.windows(2).map(|pair| (pair[1] - pair[0] + 500) / 1000).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60, 2, 1, 2], "{failure:?}");
    }
}

/// KP-3.7, KP-3.21.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_answered_is_a_failed_poll() {
    let mut world = World::new();
    world.room.performed.extend((0..3).map(|_| Performed::Unanswered("the command has no commandId".into())));
    let ran = world.polls((0..3).map(|_| command("x"))).for_seconds(2).await;
    assert_eq!(ran.diary.times("perform"), [0, 1000]);
    assert_eq!(ran.diary.count("store"), 0);
    assert_eq!(ran.state.last_poll_succeeded, Some(false));
    assert!(ran.state.failure.unwrap().contains("no commandId"));
}

/// KP-3.14.
#[tokio::test(start_paused = true)]
async fn a_pause_that_is_asked_for_is_kept() {
    let busy = Err(ChannelError::Status { status: 503, retry_after: Some(30 * SECOND) });
    // And as long again, by chance: every delay of these tests is as long as it may be.
    let times = World::new().polls([busy]).for_seconds(70).await.diary.times("next");
    assert_eq!(times[..2], [0, 60_000]);
}

/// KP-3.15.
#[tokio::test(start_paused = true)]
async fn a_cut_long_poll_is_spread_over_half_a_minute() {
    let world = World::new().polls([Ok(Polled::Nothing)]);
    let cut = || Err(ChannelError::Cut { waited: 20 * SECOND });
    world.service.next.borrow_mut().extend([(20 * SECOND, cut()), (20 * SECOND, cut())]);
    let times = world.for_seconds(120).await.diary.times("next");
    // Cut at 22 s, asked again at 52 s, cut again at 72 s; then as after any second failure.
    assert_eq!(times[..4], [0, 2000, 52_000, 74_000]);
}

/// Polls of a service that holds them: after the first empty answer a whole one, then these, after half a minute where nothing
/// comes.
fn held(world: World, polls: impl IntoIterator<Item = Result<Polled, ChannelError>>) -> World {
    let world = world.polls([Ok(Polled::Nothing)]);
    let first = (60 * SECOND, Ok(Polled::Nothing));
    let polls = polls.into_iter().map(|polled| match polled {
        Ok(Polled::Nothing) => (30 * SECOND, polled),
        _ => (SECOND, polled),
    });
    world.service.next.borrow_mut().extend([first].into_iter().chain(polls));
    world
}

/// KP-3.15, KP-3.37.
#[tokio::test(start_paused = true)]
async fn a_service_that_holds_long_polls_and_fails_is_asked_once_a_minute() {
    for failure in [500, 503, 429] {
        let diary = held(World::new(), [status(failure), status(failure)]).for_seconds(700).await.diary;
        // Held from 2 to 62 s; then it fails twice, a second after it is asked.
        assert_eq!(diary.times("next")[1..5], [2000, 62_000, 123_000, 184_000]);
        // It works again at 244 s; five minutes later, with a poll, it is told what runs here.
        let told = diary.times("announce");
        assert!(matches!(told[..], [0, again] if (544_000..610_000).contains(&again)), "{told:?}");
    }
    // What says that it was not understood, or is somewhere else, is as it always was.
    for failure in [status(404), status(302)] {
        let diary = held(World::new(), [failure.clone(), failure]).for_seconds(200).await.diary;
        assert_eq!(diary.times("next")[1..5], [2000, 62_000, 64_000, 67_000]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_in_the_middle_of_quiet_is_everyones_and_the_next_one_is_trouble() {
    let cut = || Err(ChannelError::Cut { waited: SECOND });
    let diary = held(World::new(), [cut(), cut(), Ok(Polled::Nothing)]).for_seconds(300).await.diary;
    assert_eq!(diary.times("next")[1..5], [2000, 62_000, 93_000, 154_000]);
}

/// KP-3.15.
#[tokio::test(start_paused = true)]
async fn the_end_of_an_outage_finds_no_crowd() {
    for failure in
        [ChannelError::Refused, ChannelError::TimedOut(SECOND), ChannelError::Cut { waited: 70 * SECOND }]
    {
        let first = if matches!(failure, ChannelError::Cut { .. }) { 30_000 } else { 1000 };
        let refused = || Err(ChannelError::Refused);
        let polls = [Err(failure), refused(), refused(), Ok(Polled::Nothing)];
        let times = held(World::new(), polls).for_seconds(400).await.diary.times("next");
        let again = 62_000 + 1000 + first;
        assert_eq!(times[2..6], [62_000, again, again + 61_000, again + 122_000]);
    }
}

/// KP-3.16.
#[tokio::test(start_paused = true)]
async fn a_crowds_long_polls_are_taken_apart() {
    let refused = || Err(ChannelError::Refused);
    let polls = [
        Ok(Polled::Nothing),
        command("c-1"),
        Ok(Polled::Nothing),
        refused(),
        Ok(Polled::Nothing),
        status(503),
    ];
    let mut world = World::new();
    world.random = || u64::MAX / 2;
    let world = held(world, polls);
    world.service.next.borrow_mut().push_back((30 * SECOND, status(503)));
    let diary = world.for_seconds(400).await.diary;
    let waits: Vec<_> = diary.lines().into_iter().filter(|line| line.starts_with("next")).collect();
    let expected = [
        // The start, a whole one, and with the first that was held a part.
        "next 0", "next 60", "next 30", //
        // A command, and after it a part; nobody there, and then a part.
        "next 60", "next 30", "next 60", "next 30", //
        // Refused at once, it comes back in its turn; sent away from a poll that was held, everyone else was, too.
        "next 60", "next 60", "next 30",
    ];
    assert_eq!(waits[..10], expected);
}

#[tokio::test(start_paused = true)]
async fn a_change_is_told_at_once_also_while_an_outage_waits_to_be() {
    let polls = [status(503), Ok(Polled::Nothing), command("c-1")];
    let diary = held(World::new(), polls).for_seconds(200).await.diary;
    let done = diary.times("store c-1")[0];
    assert_eq!(diary.times("announce"), [0, done + 500]);
}

#[tokio::test(start_paused = true)]
async fn status_sees_the_failure_and_its_end() {
    let refused = || Err(ChannelError::Refused);
    let ran = World::new().polls([Ok(Polled::Nothing), refused(), refused()]).for_seconds(4).await;
    assert_eq!(ran.state.pid, std::process::id());
    assert_eq!(ran.state.state, Phase::Failing);
    assert_eq!(ran.state.last_poll_succeeded, Some(false));
    assert!(ran.state.last_poll_at.is_some() && ran.state.failing_since.is_some());
    assert!(ran.state.failure.unwrap().starts_with("asking for a command: connection refused"));
    let statuses = ran.diary.lines();
    assert!(statuses.iter().any(|line| line.starts_with("STATUS=bound my-test; channel failing: ")));
    let ran = World::new().polls([refused(), Ok(Polled::Nothing)]).for_seconds(2).await;
    assert_eq!((ran.state.state, ran.state.last_poll_succeeded), (Phase::Polling, Some(true)));
    assert_eq!((ran.state.failure, ran.state.failing_since), (None, None));
}

/// KP-3.19.
#[tokio::test(start_paused = true)]
async fn a_failure_is_said_once_a_change() {
    let captured = Captured::begin();
    let refused = || Err(ChannelError::Refused);
    let polls =
        [refused(), refused(), refused(), status(500), status(500), Ok(Polled::Nothing), Ok(Polled::Nothing)];
    World::new().polls(polls).for_seconds(60).await;
    let lines = captured.lines();
    let channel: Vec<_> = lines.iter().filter(|line| line.contains("channel")).collect();
    // It works when it says who we are, fails in two ways, and works again.
    assert_eq!(channel.len(), 4, "{channel:?}");
    assert!(channel[1].contains("refused") && channel[2].contains("500"), "{channel:?}");
}

/// KP-3.37.
#[tokio::test(start_paused = true)]
async fn what_runs_here_is_told_again_after_a_change_and_after_an_outage() {
    let polls = [
        Ok(Polled::Nothing),
        Ok(Polled::Nothing),
        command("c-1"),
        Ok(Polled::Nothing),
        status(500),
        Ok(Polled::Nothing),
    ];
    let diary = World::new().polls(polls).for_seconds(20).await.diary;
    // Start, change, outage.
    assert_eq!(diary.times("announce"), [0, 4000, 7000]);
    assert!(diary.times("next").contains(&6000));
}

#[tokio::test(start_paused = true)]
async fn a_change_is_told_while_the_next_long_poll_waits() {
    let polls = [Ok(Polled::Nothing), command("c-1"), command("c-2")];
    let diary = World::new().polls(polls).for_seconds(30).await.diary;
    assert_eq!(diary.times("next"), [0, 2000, 2000, 2000]);
    // Once for both, when no third came at once.
    assert_eq!(diary.times("announce"), [0, 2500]);
}

/// KP-3.37.
#[tokio::test(start_paused = true)]
async fn nothing_waits_for_who_does_not_listen() {
    let world = World::new();
    world.service.announce.borrow_mut().push_back((10 * SECOND, Err(ChannelError::TimedOut(10 * SECOND))));
    world.service.announce.borrow_mut().push_back((10 * SECOND, status(403)));
    let diary = world.polls([Ok(Polled::Nothing), command("c-1")]).for_seconds(200).await.diary;
    assert_eq!(diary.times("perform"), [2000]);
    assert_eq!(diary.times("next"), [0, 2000, 2000, 62_000, 122_000, 182_000]);
    // Told again with the next empty poll; a final answer ends it.
    assert_eq!(diary.times("announce"), [0, 62_000]);
}
