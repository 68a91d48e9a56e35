//! Calls that are answered together: whatever waits at a moment is one piece of work. A burst of thousands (an attach wakes the
//! poll of every guest) queues up here and costs a few statements, where each alone would wait for a connection, in vain
//! when it is the last; and a call that comes alone is answered at once.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Duration, timeout};

use super::database::Database;
use super::rows::CHUNK;
use crate::store::StoreError;

/// How many pieces of work are under way.
const AT_ONCE: usize = 4;
/// How long an answer is waited for, and a piece of work: agents give a call 10 s, and what comes later is for nobody.
const LIMIT: Duration = Duration::from_secs(9);
/// How many may wait; each holds up to 64 KiB.
const WAITING_MAX: usize = 50_000;

/// What is said to each of those who ask, or why nothing is said to any.
pub(super) type Answers<Said> = Result<Vec<Result<Said, StoreError>>, StoreError>;

type Waiting<Ask, Said> = (Ask, oneshot::Sender<Result<Said, StoreError>>);

/// Where to ask. The work ends with it.
pub(super) struct Gathered<Ask, Said> {
    waiting: mpsc::Sender<Waiting<Ask, Said>>,
    late: fn(String) -> StoreError,
}

impl<Ask: Send + 'static, Said: Send + 'static> Gathered<Ask, Said> {
    /// What is asked is answered by `work`, in the order it is given; where that is too late, by `late`.
    pub(super) fn new<F>(
        database: &Arc<Database>,
        work: impl Fn(Arc<Database>, Vec<Ask>) -> F + Copy + Send + 'static,
        late: fn(String) -> StoreError,
    ) -> Self
    where
        F: Future<Output = Answers<Said>> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..AT_ONCE {
            let (database, receiver) = (database.clone(), receiver.clone());
            tokio::spawn(async move {
                while let Some((asks, who)) = next(&receiver).await {
                    // What is late goes on to its end: a transaction that is dropped half way would stay open.
                    let work = tokio::spawn(work(database.clone(), asks));
                    let answers = match timeout(LIMIT, work).await {
                        Ok(Ok(answers)) => answers,
                        Ok(Err(error)) => Err(late(error.to_string())),
                        Err(_) => Err(late(too_late())),
                    };
                    say(who, answers);
                }
            });
        }
        Self { waiting: sender, late }
    }

    /// Asks, and waits for the answer; who goes away meanwhile leaves no work half done.
    pub(super) async fn ask(&self, ask: Ask) -> Result<Said, StoreError> {
        let (sender, said) = oneshot::channel();
        let unheard = |why: &str| (self.late)(why.to_owned());
        self.waiting.try_send((ask, sender)).map_err(|_| unheard("too many wait for it"))?;
        let said = timeout(LIMIT, said).await.map_err(|_| unheard(&too_late()))?;
        said.map_err(|_| unheard("its work has ended"))?
    }
}

fn too_late() -> String {
    format!("not done within {} s", LIMIT.as_secs())
}

type Asked<Ask, Said> = (Vec<Ask>, Vec<oneshot::Sender<Result<Said, StoreError>>>);

/// All that waits now, or else the first that will; `None` where nobody can ask any more.
async fn next<Ask, Said>(receiver: &Mutex<mpsc::Receiver<Waiting<Ask, Said>>>) -> Option<Asked<Ask, Said>> {
    let mut receiver = receiver.lock().await;
    loop {
        let mut waiting = Vec::new();
        if receiver.recv_many(&mut waiting, CHUNK).await == 0 {
            return None;
        }
        // Not for those who have given up.
        waiting.retain(|(_, who)| !who.is_closed());
        if !waiting.is_empty() {
            return Some(waiting.into_iter().unzip());
        }
    }
}

fn say<Said>(who: Vec<oneshot::Sender<Result<Said, StoreError>>>, answers: Answers<Said>) {
    match answers {
        // Who does not wait any more hears nothing.
        Ok(answers) => who.into_iter().zip(answers).for_each(|(who, answer)| drop(who.send(answer))),
        Err(error) => who.into_iter().for_each(|who| drop(who.send(Err(error.clone())))),
    }
}
