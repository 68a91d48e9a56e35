//! The tables `ledgers`, `commands` and `requested`: read into a [`Ledger`], whose rules decide, and written back.

use std::collections::{BTreeMap, VecDeque};

use keypair_agent::policy::command::{self, Action, Command, Origin};
use keypair_agent::policy::outcome::Outcome;
use keypair_agent::policy::types::{CommandId, InstanceId, Sequence};
use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Connection, failed, key_pairs};
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

/// Whose ledgers are wanted.
#[derive(Debug, Clone, Copy)]
pub(super) enum Which<'a> {
    All,
    One(&'a InstanceId),
}

/// Sees to it that the instance has a ledger, and that it is this transaction's until its end.
pub(super) async fn lock(
    connection: &mut Connection,
    instance: &InstanceId,
    locking: Locking,
) -> Result<(), StoreError> {
    let insert = "INSERT INTO ledgers (instance, highest) VALUES ($1, 0) ON CONFLICT DO NOTHING";
    sqlx::query(insert).bind(instance.as_str()).execute(&mut *connection).await.map_err(failed)?;
    if locking == Locking::Rows {
        let lock = "SELECT instance FROM ledgers WHERE instance = $1 FOR UPDATE";
        sqlx::query(lock).bind(instance.as_str()).fetch_one(&mut *connection).await.map_err(failed)?;
    }
    Ok(())
}

/// The ledgers with their unanswered commands, and with that of this id: by one statement, and so of one moment.
pub(super) async fn load(
    connection: &mut Connection,
    which: Which<'_>,
    also: Option<&CommandId>,
) -> Result<BTreeMap<InstanceId, Ledger>, StoreError> {
    let (confirmed, queued) =
        (key_pairs::columns_named("k", CONFIRMED), key_pairs::columns_named("q", QUEUED));
    let or_also = if also.is_some() { " OR c.id = $1" } else { "" };
    let only = match (which, also) {
        (Which::All, _) => "",
        (Which::One(_), None) => "WHERE l.instance = $1",
        (Which::One(_), Some(_)) => "WHERE l.instance = $2",
    };
    let query = format!(
        "SELECT l.instance, l.password_auth, l.confirmed_by, l.highest, {confirmed}, \
                c.sequence, c.command, c.result, {queued} \
         FROM ledgers l LEFT JOIN key_pairs k ON k.id = l.key_pair \
         LEFT JOIN commands c ON c.instance = l.instance AND (c.result IS NULL{or_also}) \
         LEFT JOIN key_pairs q ON q.id = c.key_pair {only} ORDER BY l.instance, c.sequence"
    );
    let mut query = sqlx::query(&query);
    if let Some(also) = also {
        query = query.bind(also.as_str());
    }
    if let Which::One(instance) = which {
        query = query.bind(instance.as_str());
    }
    let mut parts: BTreeMap<InstanceId, (Confirmed, VecDeque<Entry>, u64)> = BTreeMap::new();
    for row in query.fetch_all(connection).await.map_err(failed)? {
        let instance = instance(&row)?;
        let entry = entry(&row)?;
        match parts.get_mut(&instance) {
            Some((_, entries, _)) => entries.extend(entry),
            None => {
                let highest: i64 = row.try_get("highest").map_err(failed)?;
                let highest = highest.try_into().map_err(failed)?;
                parts.insert(instance, (confirmed_of(&row)?, entry.into_iter().collect(), highest));
            }
        }
    }
    let kept =
        |(instance, (confirmed, entries, highest))| (instance, Ledger::kept(confirmed, entries, highest));
    Ok(parts.into_iter().map(kept).collect())
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

/// Appends a command.
pub(super) async fn push(
    connection: &mut Connection,
    instance: &InstanceId,
    entry: &Entry,
) -> Result<(), StoreError> {
    let sequence = number(entry.sequence)?;
    let query = sqlx::query(
        "INSERT INTO commands (instance, sequence, id, command, key_pair) VALUES ($1, $2, $3, $4, $5)",
    );
    let query = query
        .bind(instance.as_str())
        .bind(sequence)
        .bind(entry.command.id.as_str())
        .bind(serde_json::to_string(&entry.command).map_err(failed)?)
        .bind(entry.binding.as_ref().map(|binding| binding.key_pair.id.clone()));
    query.execute(&mut *connection).await.map_err(failed)?;
    let query = sqlx::query("UPDATE ledgers SET highest = $1 WHERE instance = $2");
    query.bind(sequence).bind(instance.as_str()).execute(connection).await.map_err(failed)?;
    Ok(())
}

/// Keeps a result and what it confirms, and forgets the oldest commands that have one.
pub(super) async fn keep_answer(
    connection: &mut Connection,
    instance: &InstanceId,
    answer: &Answer,
    confirmed: &Confirmed,
) -> Result<(), StoreError> {
    let result = std::str::from_utf8(&answer.bytes).map_err(failed)?;
    let query = sqlx::query("UPDATE commands SET result = $1 WHERE id = $2");
    query
        .bind(result)
        .bind(answer.outcome.command_id.as_str())
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
    let query = sqlx::query(
        "UPDATE ledgers SET key_pair = $1, password_auth = $2, confirmed_by = $3 WHERE instance = $4",
    );
    let binding = confirmed.binding.as_ref();
    let query = query
        .bind(binding.map(|binding| binding.key_pair.id.clone()))
        .bind(binding.map(|binding| binding.password_auth.to_string()))
        .bind(confirmed.by.map(number).transpose()?)
        .bind(instance.as_str());
    query.execute(&mut *connection).await.map_err(failed)?;
    let query = format!(
        "DELETE FROM commands WHERE instance = $1 AND result IS NOT NULL AND sequence <= \
         (SELECT sequence FROM commands WHERE instance = $1 AND result IS NOT NULL \
          ORDER BY sequence DESC LIMIT 1 OFFSET {ANSWERED_KEPT})"
    );
    sqlx::query(&query).bind(instance.as_str()).execute(connection).await.map_err(failed)?;
    Ok(())
}

/// Keeps which commands a request led to.
pub(super) async fn keep_request(
    connection: &mut Connection,
    request: &RequestId,
    placed: &[Placed],
) -> Result<(), StoreError> {
    for (place, placed) in (0_i64..).zip(placed) {
        let query = sqlx::query("INSERT INTO requested (request, place, command) VALUES ($1, $2, $3)");
        let query = query.bind(request.as_str()).bind(place).bind(placed.command.as_str());
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
        Ok(Fate { instance: instance(row)?, command: command(row)?, outcome })
    };
    rows.iter().map(fate).collect()
}

fn instance(row: &AnyRow) -> Result<InstanceId, StoreError> {
    Ok(row.try_get::<String, _>("instance").map_err(failed)?.parse()?)
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
    Ok(Some(Entry { command, sequence: sequence(number)?, binding, answer: answer(row)? }))
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
