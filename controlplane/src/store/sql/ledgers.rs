//! The tables `ledgers`, `commands` and `requested`: read into a [`Ledger`], whose rules decide, and written back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use keypair_agent::policy::command::{self, Action, Command, Origin};
use keypair_agent::policy::outcome::Outcome;
use keypair_agent::policy::types::{CommandId, InstanceId, Sequence};
use sqlx::any::AnyRow;
use sqlx::{AnyPool, Row};

use super::rows::{self, CHUNK};
use super::{Connection, failed, key_pairs, not_written};
use crate::ids::RequestId;
use crate::ledger::{ANSWERED_KEPT, Answer, Binding, Confirmed, Entry, Ledger};
use crate::store::{Fate, Placed, StoreError};

/// How the columns of the key pair that is confirmed, and of that of a command, begin.
const CONFIRMED: &str = "confirmed_";
const QUEUED: &str = "queued_";

/// What keeps two transactions from working on one ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Locking {
    /// There is one connection (SQLite).
    WholeFile,
    /// The ledger's row is locked (PostgreSQL).
    Rows,
}

/// What to do about a ledger that another transaction works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IfTaken {
    Wait,
    Skip,
}

/// Whose ledgers are wanted, and which commands besides those without an answer: a chunk of these at most.
#[derive(Debug, Clone, Copy)]
pub(super) enum Which<'a> {
    All,
    Some(&'a [&'a InstanceId], &'a [&'a CommandId]),
}

/// Ledgers; what of them cannot be read is the concern of one instance alone.
pub(super) type Loaded = BTreeMap<InstanceId, Result<Ledger, StoreError>>;

/// Sees to it that these instances, sorted, have ledgers. A transaction adds all of them before it locks any: so it waits only for one
/// that adds too while it adds, and only for one that locks too while it locks, always upwards, and no two for one another.
pub(super) async fn add(connection: &mut Connection, instances: &[&InstanceId]) -> Result<(), StoreError> {
    for chunk in instances.chunks(CHUNK) {
        let rows = rows::values(chunk.len(), 1).replace(')', ", 0)");
        let text = format!("INSERT INTO ledgers (instance, highest) VALUES {rows} ON CONFLICT DO NOTHING");
        let query = rows::bind(rows::query(&text, chunk.len()), chunk);
        query.execute(&mut *connection).await.map_err(failed)?;
    }
    Ok(())
}

/// Makes the ledgers of these instances, sorted, this transaction's until its end. What is in them is read by another statement
/// afterwards: one that waits for a lock sees the row as it is then, but the rows of other tables as they were before.
/// Those are given that it has got.
pub(super) async fn lock(
    connection: &mut Connection,
    instances: &[&InstanceId],
    locking: Locking,
    if_taken: IfTaken,
) -> Result<BTreeSet<InstanceId>, StoreError> {
    if locking == Locking::WholeFile {
        return Ok(instances.iter().copied().cloned().collect());
    }
    let skip = match if_taken {
        IfTaken::Wait => "",
        IfTaken::Skip => " SKIP LOCKED",
    };
    let mut locked = BTreeSet::new();
    for chunk in instances.chunks(CHUNK) {
        // In the order of bytes, as the chunks are, whatever the database's locale is.
        let text = format!(
            "SELECT instance FROM ledgers WHERE instance IN ({}) ORDER BY instance COLLATE \"C\" FOR UPDATE{skip}",
            rows::list(0, chunk.len())
        );
        let query = rows::bind(rows::query(&text, chunk.len()), chunk);
        for row in query.fetch_all(&mut *connection).await.map_err(failed)? {
            locked.insert(rows::instance(&row)?);
        }
    }
    Ok(locked)
}

/// The ledgers with their unanswered commands, and with the others wanted: each by one statement, and so of one moment.
pub(super) async fn load(connection: &mut Connection, which: Which<'_>) -> Result<Loaded, StoreError> {
    let mut parts = BTreeMap::new();
    match which {
        Which::All => {
            let text = selection("", "");
            take(&mut parts, sqlx::query(&text).fetch_all(connection).await.map_err(failed)?)?;
        }
        Which::Some(instances, commands) => {
            for chunk in instances.chunks(CHUNK) {
                let also = match commands.len() {
                    0 => String::new(),
                    count => format!(" OR c.id IN ({})", rows::list(chunk.len(), count)),
                };
                let only = format!("WHERE l.instance IN ({})", rows::list(0, chunk.len()));
                let text = selection(&also, &only);
                let mut query = rows::bind(rows::query(&text, chunk.len().max(commands.len())), chunk);
                for command in commands {
                    query = query.bind(command.as_str());
                }
                take(&mut parts, query.fetch_all(&mut *connection).await.map_err(failed)?)?;
            }
        }
    }
    let kept = |(confirmed, entries, highest)| Ledger::kept(confirmed, entries, highest);
    Ok(parts.into_iter().map(|(instance, parts)| (instance, parts.map(kept))).collect())
}

/// What a ledger is made of: what is confirmed, the commands, the highest sequence.
type Parts = (Confirmed, VecDeque<Entry>, u64);

/// A row for each ledger and command.
fn selection(also: &str, only: &str) -> String {
    let (confirmed, queued) =
        (key_pairs::columns_named("k", CONFIRMED), key_pairs::columns_named("q", QUEUED));
    format!(
        "SELECT l.instance, l.password_auth, l.confirmed_by, l.highest, {confirmed}, \
                c.sequence, c.command, c.handed_out, c.result, {queued} \
         FROM ledgers l LEFT JOIN key_pairs k ON k.id = l.key_pair \
         LEFT JOIN commands c ON c.instance = l.instance AND (c.result IS NULL{also}) \
         LEFT JOIN key_pairs q ON q.id = c.key_pair {only} ORDER BY l.instance, c.sequence"
    )
}

fn take(
    parts: &mut BTreeMap<InstanceId, Result<Parts, StoreError>>,
    rows: Vec<AnyRow>,
) -> Result<(), StoreError> {
    for row in rows {
        let ledger = parts.entry(rows::instance(&row)?).or_insert_with(|| {
            let highest: i64 = row.try_get("highest").map_err(failed)?;
            Ok((confirmed_of(&row)?, VecDeque::new(), highest.try_into().map_err(failed)?))
        });
        if let Ok((_, entries, _)) = ledger {
            match entry(&row) {
                Ok(entry) => entries.extend(entry),
                Err(error) => *ledger = Err(error),
            }
        }
    }
    Ok(())
}

fn confirmed_of(row: &AnyRow) -> Result<Confirmed, StoreError> {
    let password_auth: Option<String> = row.try_get("password_auth").map_err(failed)?;
    let binding = match password_auth {
        None => None,
        Some(word) => {
            let key_pair = key_pairs::read_named(row, CONFIRMED)?;
            Some(Binding { key_pair, password_auth: word.parse()? })
        }
    };
    let by: Option<i64> = row.try_get("confirmed_by").map_err(failed)?;
    Ok(Confirmed { binding, by: by.map(sequence).transpose()? })
}

/// Appends commands, one an instance.
pub(super) async fn push(
    connection: &mut Connection,
    queued: &[(&InstanceId, Box<Entry>)],
) -> Result<(), StoreError> {
    for chunk in queued.chunks(CHUNK) {
        let rows = rows::values(chunk.len(), 5);
        let text = format!("INSERT INTO commands (instance, sequence, id, command, key_pair) VALUES {rows}");
        let mut query = rows::query(&text, chunk.len());
        for (instance, entry) in chunk {
            query = query
                .bind(instance.as_str())
                .bind(number(entry.sequence)?)
                .bind(entry.command.id.as_str())
                .bind(serde_json::to_string(&entry.command).map_err(failed)?)
                .bind(entry.binding.as_ref().map(|binding| binding.key_pair.id.as_str()));
        }
        query.execute(&mut *connection).await.map_err(failed)?;
        let text = format!(
            "INSERT INTO ledgers (instance, highest) VALUES {} \
             ON CONFLICT (instance) DO UPDATE SET highest = excluded.highest",
            rows::values(chunk.len(), 2)
        );
        let mut query = rows::query(&text, chunk.len());
        for (instance, entry) in chunk {
            query = query.bind(instance.as_str()).bind(number(entry.sequence)?);
        }
        query.execute(&mut *connection).await.map_err(failed)?;
    }
    Ok(())
}

/// Keeps when a command was handed out first. A statement of its own: who was first does not matter within moments.
pub(super) async fn hand_out(pool: &AnyPool, command: &CommandId, now: u64) -> Result<(), StoreError> {
    let query = sqlx::query("UPDATE commands SET handed_out = $1 WHERE id = $2 AND handed_out IS NULL");
    let now = i64::try_from(now).map_err(failed)?;
    query.bind(now).bind(command.as_str()).execute(pool).await.map_err(not_written)?;
    Ok(())
}

/// Keeps results, a chunk at most.
pub(super) async fn keep_answers(
    connection: &mut Connection,
    answers: &[(&CommandId, &str)],
) -> Result<(), StoreError> {
    let text = format!(
        "WITH said (id, result) AS (VALUES {}) \
         UPDATE commands SET result = said.result FROM said WHERE commands.id = said.id",
        rows::values(answers.len(), 2)
    );
    let mut query = rows::query(&text, answers.len());
    for (command, result) in answers {
        query = query.bind(command.as_str()).bind(*result);
    }
    query.execute(connection).await.map_err(failed)?;
    Ok(())
}

/// Keeps what instances, a chunk at most, have confirmed, and forgets the oldest of their commands that have a result.
pub(super) async fn keep_confirmed(
    connection: &mut Connection,
    ledgers: &[(&InstanceId, &Confirmed)],
) -> Result<(), StoreError> {
    let text = format!(
        "WITH said (instance, key_pair, password_auth, confirmed_by) AS (VALUES {}) UPDATE ledgers \
         SET key_pair = said.key_pair, password_auth = said.password_auth, confirmed_by = said.confirmed_by \
         FROM said WHERE ledgers.instance = said.instance",
        rows::values(ledgers.len(), 4)
    );
    let mut query = rows::query(&text, ledgers.len());
    for (instance, confirmed) in ledgers {
        let binding = confirmed.binding.as_ref();
        query = query
            .bind(instance.as_str())
            .bind(binding.map(|binding| binding.key_pair.id.as_str()))
            .bind(binding.map(|binding| binding.password_auth.to_string()))
            .bind(confirmed.by.map(number).transpose()?);
    }
    query.execute(&mut *connection).await.map_err(failed)?;
    let instances: Vec<&InstanceId> = ledgers.iter().map(|(instance, _)| *instance).collect();
    forget_oldest(connection, &instances).await
}

async fn forget_oldest(connection: &mut Connection, instances: &[&InstanceId]) -> Result<(), StoreError> {
    let text = format!(
        "SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY instance ORDER BY sequence DESC) AS age \
         FROM commands WHERE instance IN ({}) AND result IS NOT NULL) AS answered WHERE age > {ANSWERED_KEPT}",
        rows::list(0, instances.len())
    );
    let query = rows::bind(rows::query(&text, instances.len()), instances);
    let oldest = query.fetch_all(&mut *connection).await.map_err(failed)?;
    // Most instances never have as many.
    for chunk in oldest.chunks(CHUNK) {
        let text = format!("DELETE FROM commands WHERE id IN ({})", rows::list(0, chunk.len()));
        let mut query = rows::query(&text, chunk.len());
        for row in chunk {
            query = query.bind(row.try_get::<String, _>("id").map_err(failed)?);
        }
        query.execute(&mut *connection).await.map_err(failed)?;
    }
    Ok(())
}

/// Keeps which commands a request led to.
pub(super) async fn keep_request(
    connection: &mut Connection,
    request: &RequestId,
    placed: &[Placed],
) -> Result<(), StoreError> {
    let mut places = 0_i64..;
    for chunk in placed.chunks(CHUNK) {
        let rows = rows::values(chunk.len(), 3);
        let text = format!("INSERT INTO requested (request, place, command) VALUES {rows}");
        let mut query = rows::query(&text, chunk.len());
        for (placed, place) in chunk.iter().zip(&mut places) {
            query = query.bind(request.as_str()).bind(place).bind(placed.command.as_str());
        }
        query.execute(&mut *connection).await.map_err(failed)?;
    }
    Ok(())
}

/// What became of the commands that a request led to.
pub(super) async fn fates(connection: &mut Connection, request: &RequestId) -> Result<Vec<Fate>, StoreError> {
    let query = sqlx::query(
        "SELECT c.instance, c.command, c.result FROM requested r JOIN commands c ON c.id = r.command \
         WHERE r.request = $1 ORDER BY r.place",
    );
    let rows = query.bind(request.as_str()).fetch_all(connection).await.map_err(failed)?;
    let fate = |row: &AnyRow| {
        let outcome = answer(row)?.map(|answer| answer.outcome);
        Ok(Fate { instance: rows::instance(row)?, command: command(row)?, outcome })
    };
    rows.iter().map(fate).collect()
}

/// The command of a row, where there is one.
fn entry(row: &AnyRow) -> Result<Option<Entry>, StoreError> {
    let Some(number) = row.try_get("sequence").map_err(failed)? else { return Ok(None) };
    let command = command(row)?;
    let binding = match command.action {
        Action::Attach { password_auth, .. } => {
            Some(Binding { key_pair: key_pairs::read_named(row, QUEUED)?, password_auth })
        }
        Action::Detach { .. } | Action::SetPasswordAuth { .. } => None,
    };
    let handed_out: Option<i64> = row.try_get("handed_out").map_err(failed)?;
    let handed_out = handed_out.map(u64::try_from).transpose().map_err(failed)?;
    Ok(Some(Entry { command, sequence: sequence(number)?, binding, handed_out, answer: answer(row)? }))
}

/// As the agent would read it.
fn command(row: &AnyRow) -> Result<Command, StoreError> {
    let text: String = row.try_get("command").map_err(failed)?;
    let nobody = CommandId::try_from("none".to_owned())?;
    let received = command::parse(text.as_bytes(), Origin::Channel, &nobody).map_err(failed)?;
    received.command.map_err(|refusal| failed(refusal.message))
}

fn answer(row: &AnyRow) -> Result<Option<Answer>, StoreError> {
    let Some(text) = row.try_get::<Option<String>, _>("result").map_err(failed)? else { return Ok(None) };
    let outcome: Outcome = serde_json::from_str(&text).map_err(failed)?;
    Ok(Some(Answer { outcome, bytes: text.into_bytes() }))
}

fn sequence(number: i64) -> Result<Sequence, StoreError> {
    Ok(Sequence::try_from(u64::try_from(number).map_err(failed)?)?)
}

fn number(sequence: Sequence) -> Result<i64, StoreError> {
    i64::try_from(u64::from(sequence)).map_err(failed)
}
