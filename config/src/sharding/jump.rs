//! Jump consistent hash (Lamping and Veach, 2014): no table, and a new last shard takes from all others alike.

/// The place of a hash among so many shards, at least one.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the paper's arithmetic: the numbers stay below 2^31, and what is beyond ends the loop"
)]
pub(super) fn jump(mut hash: u64, shards: usize) -> usize {
    let (mut at, mut next) = (0_u64, 0_u64);
    while next < shards as u64 {
        at = next;
        hash = hash.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        next = ((at + 1) as f64 * ((1_u64 << 31) as f64 / ((hash >> 33) + 1) as f64)) as u64;
    }
    usize::try_from(at).unwrap_or_default()
}
