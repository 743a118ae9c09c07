//! Slots when shards come or go: the fewest that have to move, and which.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

/// Whose each slot is once exactly `wanted`, at least one shard and at most as many as slots, have them all. Shards are places
/// of a list, in `wanted` in the order in which somebody wants them.
///
/// - Twice as many, the old ones among them: each is split in two, the upper half for the new one at its place.
/// - What a shard had that goes is taken by those with the least.
/// - A new one takes its share from those with the most, never more than its share.
/// - The same ones: those with more than their share give to those with less.
pub(super) fn evened(owners: &[u16], wanted: &[usize]) -> Vec<u16> {
    let mut slots: Vec<Vec<usize>> = vec![Vec::new(); shards(owners, wanted)];
    owners.iter().enumerate().for_each(|(slot, owner)| slots[usize::from(*owner)].push(slot));
    let (old, new): (Vec<usize>, Vec<usize>) = wanted.iter().partition(|shard| !slots[**shard].is_empty());
    let stays: BTreeSet<usize> = wanted.iter().copied().collect();
    let gone: Vec<usize> =
        (0..slots.len()).filter(|at| !slots[*at].is_empty() && !stays.contains(at)).collect();
    let may_be_split = gone.is_empty() && old.len() == new.len() && old.iter().all(|at| slots[*at].len() > 1);
    if may_be_split {
        for (from, to) in old.into_iter().zip(new) {
            let middle = slots[from].len().div_ceil(2);
            slots[to] = slots[from].split_off(middle);
        }
        return owned(owners.len(), &slots);
    }
    let (share, rest) = (owners.len() / wanted.len(), owners.len() % wanted.len());
    let is_same = gone.is_empty() && new.is_empty();
    let homeless: Vec<usize> = gone.iter().flat_map(|at| std::mem::take(&mut slots[*at])).collect();
    hand_out(&homeless, &least(&slots, wanted, homeless.len()), &mut slots);
    let (givers, wants) = if is_same {
        // Whoever has the most keeps the one that is left over.
        let mut by_size = old.clone();
        by_size.sort_by_key(|at| Reverse(slots[*at].len()));
        let target = |rank: usize| share + usize::from(rank < rest);
        let wants =
            by_size.iter().enumerate().map(|(rank, at)| (*at, target(rank).saturating_sub(slots[*at].len())));
        let wants: Vec<(usize, usize)> = wants.collect();
        let over =
            by_size.iter().enumerate().map(|(rank, at)| (*at, slots[*at].len().saturating_sub(target(rank))));
        (over.collect(), wants)
    } else {
        let target = |rank: usize| share + usize::from(rank + old.len() < rest);
        let wants =
            new.iter().enumerate().map(|(rank, at)| (*at, target(rank).saturating_sub(slots[*at].len())));
        let wants: Vec<(usize, usize)> = wants.collect();
        (most(&slots, &old, wants.iter().map(|(_, many)| many).sum()), wants)
    };
    let mut given = Vec::new();
    for (from, many) in in_order(wanted, givers) {
        let keeps = slots[from].len() - many;
        given.extend(slots[from].split_off(keeps));
    }
    hand_out(&given, &in_order(wanted, wants), &mut slots);
    owned(owners.len(), &slots)
}

fn shards(owners: &[u16], wanted: &[usize]) -> usize {
    let owners = owners.iter().map(|owner| usize::from(*owner));
    owners.chain(wanted.iter().copied()).max().map_or(0, |highest| highest + 1)
}

/// How many of `many` each gets, when each goes to whoever has the least then.
fn least(slots: &[Vec<usize>], among: &[usize], many: usize) -> Vec<(usize, usize)> {
    let mut gets = vec![0; among.len()];
    let mut heap: BinaryHeap<_> =
        among.iter().enumerate().map(|(rank, at)| Reverse((slots[*at].len(), rank))).collect();
    for _ in 0..many {
        let Some(Reverse((size, rank))) = heap.pop() else { break };
        gets[rank] += 1;
        heap.push(Reverse((size + 1, rank)));
    }
    among.iter().copied().zip(gets).collect()
}

/// How many of `many` each gives, when each is taken from whoever has the most then.
fn most(slots: &[Vec<usize>], among: &[usize], many: usize) -> Vec<(usize, usize)> {
    let mut gives = vec![0; among.len()];
    let mut heap: BinaryHeap<_> =
        among.iter().enumerate().map(|(rank, at)| (slots[*at].len(), Reverse(rank))).collect();
    for _ in 0..many {
        let Some((size, Reverse(rank))) = heap.pop() else { break };
        gives[rank] += 1;
        heap.push((size.saturating_sub(1), Reverse(rank)));
    }
    among.iter().copied().zip(gives).collect()
}

/// In the order in which shards are wanted, so that what one gives goes to few.
fn in_order(wanted: &[usize], mut counts: Vec<(usize, usize)>) -> Vec<(usize, usize)> {
    counts.sort_by_key(|(at, _)| wanted.iter().position(|shard| shard == at));
    counts
}

/// Gives slots away in a row.
fn hand_out(given: &[usize], gets: &[(usize, usize)], slots: &mut [Vec<usize>]) {
    let mut rest = given;
    for (to, many) in gets {
        let (its, after) = rest.split_at((*many).min(rest.len()));
        slots[*to].extend(its);
        slots[*to].sort_unstable();
        rest = after;
    }
}

fn owned(many: usize, slots: &[Vec<usize>]) -> Vec<u16> {
    let mut owners = vec![0; many];
    for (own, shard) in slots.iter().zip(0_u16..) {
        own.iter().for_each(|slot| owners[*slot] = shard);
    }
    owners
}
