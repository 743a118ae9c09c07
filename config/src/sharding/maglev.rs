//! Maglev (Eisenbud et al., NSDI 2016): shards take turns in filling a table, each in an order of its own; a key goes to whoever
//! has its row.

use super::strategy::{Hashed, remainder};
use crate::name::Name;

/// Rows of the table, a prime as the paper asks for: 64 for each of the most shards, so that no two differ by more than 2 %.
const ROWS: usize = 65_537;
const NOBODY: u16 = u16::MAX;

/// Whose each row is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Maglev(Box<[u16]>);

/// The order in which a shard wants the rows.
struct Order {
    next: usize,
    skip: usize,
}

impl Maglev {
    /// The lower half of the hash of a shard's name says with which row it begins, the upper half how far it skips.
    pub(super) fn of(shards: &[Name], hashed: Hashed) -> Self {
        let order = |shard: &Name| {
            let hash = hashed.of_name(shard.as_str());
            Order {
                next: remainder(hash & u64::from(u32::MAX), ROWS),
                skip: remainder(hash >> u32::BITS, ROWS - 1) + 1,
            }
        };
        let mut orders: Vec<Order> = shards.iter().map(order).collect();
        let mut rows = vec![NOBODY; ROWS].into_boxed_slice();
        let mut left = ROWS;
        'full: loop {
            for (order, owner) in orders.iter_mut().zip(0..) {
                while rows[order.next] != NOBODY {
                    order.next = (order.next + order.skip) % ROWS;
                }
                rows[order.next] = owner;
                left -= 1;
                if left == 0 {
                    break 'full;
                }
            }
        }
        Self(rows)
    }

    pub(super) fn shard(&self, hash: u64) -> usize {
        usize::from(self.0[remainder(hash, ROWS)])
    }
}
