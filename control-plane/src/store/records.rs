//! What is kept of services beside their tables: read as a whole, written only by who has read what is there.

use std::sync::Arc;

use gilmok_config::name::ServiceName;
use redb::{ReadableDatabase, ReadableTable, WriteTransaction};

use super::{RECORDS, Store, StoreError, decode, encode};
use crate::record::{Record, Records};

/// What one write left in the store.
pub(super) type Written = Vec<(ServiceName, Option<Record>)>;

impl Store {
    /// What is kept of every service.
    #[must_use]
    pub fn records(&self) -> Arc<Records> {
        self.inner.records.borrow().clone()
    }

    /// Keeps what became of services without a revision: nothing that an operator or a proxy has to hear of. Answers
    /// false, and keeps nothing, when somebody else has written one of them since it was read.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub async fn keep_records(&self, records: Vec<(ServiceName, Record)>) -> Result<bool, StoreError> {
        self.blocking(move |store| {
            let unusable = |error: redb::Error| store.unusable(&error);
            let transaction = store.inner.database.begin_write().map_err(|error| unusable(error.into()))?;
            let records = records.into_iter().map(|(service, record)| (service, Some(record))).collect();
            let Some(written) = write(&transaction, records).map_err(unusable)? else { return Ok(false) };
            transaction.commit().map_err(|error| unusable(error.into()))?;
            store.told_of_records(written);
            Ok(true)
        })
        .await
    }

    pub(super) fn read_records(&self) -> Result<Records, StoreError> {
        let read = || -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
            let table = self.inner.database.begin_read()?.open_table(RECORDS)?;
            table
                .iter()?
                .map(|entry| {
                    entry
                        .map(|(name, bytes)| (name.value().to_owned(), bytes.value().to_vec()))
                        .map_err(Into::into)
                })
                .collect()
        };
        let entries = read().map_err(|error| self.unusable(&error))?;
        let decoded = entries.into_iter().map(|(name, bytes)| {
            let name = ServiceName::parse(&name)
                .map_err(|why| StoreError::Damaged { what: "service's name", why: why.to_owned() })?;
            Ok((name, decode(&bytes, "record of a service")?))
        });
        decoded.collect()
    }

    /// What was written is what is read from now on. An older word never replaces a newer one.
    pub(super) fn told_of_records(&self, written: Written) {
        if written.is_empty() {
            return;
        }
        self.inner.records.send_modify(|records| {
            let mut next = Records::clone(records);
            for (service, record) in written {
                match record {
                    None => drop(next.remove(&service)),
                    Some(record) if next.get(&service).is_none_or(|known| known.seq < record.seq) => {
                        next.insert(service, record);
                    }
                    Some(_) => {}
                }
            }
            *records = Arc::new(next);
        });
    }
}

/// Writes within a transaction; `None` when one of them is not what was read.
pub(super) fn write(
    transaction: &WriteTransaction,
    records: Written,
) -> Result<Option<Written>, redb::Error> {
    let mut table = transaction.open_table(RECORDS)?;
    let mut written = Vec::with_capacity(records.len());
    for (service, record) in records {
        let seq = match table.get(service.as_str())? {
            None => 0,
            // What cannot be read is not what anybody has read.
            Some(bytes) => decode::<Record>(bytes.value(), "record").map_or(u64::MAX, |known| known.seq),
        };
        let record = match record {
            None => {
                table.remove(service.as_str())?;
                None
            }
            Some(record) if record.seq != seq => return Ok(None),
            Some(record) => {
                let record = Record { seq: seq + 1, ..record };
                table.insert(service.as_str(), encode(&record).as_slice())?;
                Some(record)
            }
        };
        written.push((service, record));
    }
    Ok(Some(written))
}
