//! Maglev (Eisenbud et al., NSDI 2016): owners take turns in filling a table, each in an order of its own; a key goes to whoever
//! has its row.

use super::strategy::{Hashed, remainder};
use crate::name::Name;

/// Rows of the table, a prime as the paper asks for: 64 for each of the most shards, so that no two differ by more than 2 %.
pub(crate) const ROWS: usize = 65_537;
const NOBODY: u16 = u16::MAX;

/// Whose each row is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Maglev(Box<[u16]>);

/// The order in which an owner wants the rows.
struct Order {
    next: usize,
    skip: usize,
}

impl Maglev {
    pub(super) fn of(shards: &[Name], hashed: Hashed) -> Self {
        let hashes: Vec<u64> = shards.iter().map(|shard| hashed.of_name(shard.as_str())).collect();
        Self::filled(ROWS, &hashes, (0..NOBODY).take(shards.len()).cycle())
    }

    /// A table of so many rows, a prime, that the owners of these hashes fill, one row for each turn. The lower half of a
    /// hash says with which row its owner begins, the upper half how far it skips. The turns go on until all rows are full.
    pub(crate) fn filled(many: usize, hashes: &[u64], turns: impl Iterator<Item = u16>) -> Self {
        let order = |hash: &u64| Order {
            next: remainder(hash & u64::from(u32::MAX), many),
            skip: remainder(hash >> u32::BITS, many - 1) + 1,
        };
        let mut orders: Vec<Order> = hashes.iter().map(order).collect();
        let mut rows = vec![NOBODY; many].into_boxed_slice();
        for owner in turns.take(many) {
            let Some(order) = orders.get_mut(usize::from(owner)) else { continue };
            while rows[order.next] != NOBODY {
                order.next = (order.next + order.skip) % many;
            }
            rows[order.next] = owner;
        }
        Self(rows)
    }

    pub(super) fn shard(&self, hash: u64) -> usize {
        usize::from(self.0[remainder(hash, ROWS)])
    }

    /// Who has the row of a hash, however many rows there are.
    pub(crate) fn owner(&self, hash: u64) -> u16 {
        self.0[remainder(hash, self.0.len())]
    }
}
