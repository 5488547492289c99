//! Reduction of rows by segment number. The rows of a segment may lie anywhere; they are sorted by segment first.

use super::{GRAIN, Reduce, scalar};
use crate::pool::{Disjoint, Pool};

/// Most columns of one task: their sums leave room in the first-level cache for the rows.
pub(super) const COLUMNS: usize = 1024;

/// Columns of one task where segments are few.
const NARROW: usize = 256;

/// Reduces the rows of `x: [n, d]` that carry the same number into `out: [count, d]`.
///
/// Segments may come in any order; a negative number skips its row. Rows of a segment are taken
/// in order, whatever the number of threads. A segment without rows gives the reduction of
/// nothing, except that `Mean` gives 0.
///
/// # Panics
/// When a segment number is not below `count`, or a length is wrong.
#[track_caller]
#[expect(clippy::too_many_arguments, reason = "a kernel names its sizes, inputs and outputs")]
pub fn segment_reduce(pool: &Pool, op: Reduce, n: usize, d: usize, x: &[f32], segments: &[i32], count: usize, out: &mut [f32]) {
    assert!(x.len() == n * d && segments.len() == n && out.len() == count * d, "length of an operand of segment_reduce");
    if d == 0 || count == 0 {
        return;
    }
    let (start, order) = sort_by_number(count, segments);
    let columns = if count * d >= 16 * COLUMNS { COLUMNS } else { NARROW };
    let tiles = d.div_ceil(columns);
    // Segments of one task: as many rows as are worth it on average.
    let per_task = (GRAIN * count / (n * d.min(columns)).max(1)).clamp(1, count);
    let out = Disjoint::new(out);
    pool.run(count.div_ceil(per_task) * tiles, &|task| {
        let column = task % tiles * columns;
        let width = columns.min(d - column);
        let first = task / tiles * per_task;
        for segment in first..count.min(first + per_task) {
            let rows = &order[start[segment] as usize..start[segment + 1] as usize];
            // SAFETY: a task is alone in its columns of its segments.
            let out = unsafe { out.slice(segment * d + column, width) };
            match pool.isa() {
                _ if rows.is_empty() && op == Reduce::Mean => out.fill(0.0),
                #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
                isa if isa.is_wide() => super::vector::picked(isa, op, rows, x, d, column, out),
                _ => scalar::picked(op, rows, x, d, column, out),
            }
        }
    });
}

/// A counting sort: `order[start[s]..start[s + 1]]` are the places in `numbers` that hold `s`, in order.
///
/// # Panics
/// When a number is not below `count`, or there are more than 2^32 of them.
#[track_caller]
pub(crate) fn sort_by_number(count: usize, numbers: &[i32]) -> (Vec<u32>, Vec<u32>) {
    assert!(u32::try_from(numbers.len()).is_ok(), "places of numbers fit 32 bits");
    if numbers.is_sorted() {
        return sorted_by_number(count, numbers);
    }
    // While places are handed out, `start[s + 1]` is the next one of `s`; in the end that is where `s + 1` begins.
    let mut start = vec![0u32; count + 2];
    for &number in numbers {
        if let Ok(number) = usize::try_from(number) {
            assert!(number < count, "number out of range");
            start[number + 2] += 1;
        }
    }
    for number in 0..count {
        start[number + 2] += start[number + 1];
    }
    let mut order = vec![0u32; start[count + 1] as usize];
    for (place, &number) in numbers.iter().enumerate() {
        if let Ok(number) = usize::try_from(number) {
            order[start[number + 1] as usize] = place as u32;
            start[number + 1] += 1;
        }
    }
    (start, order)
}

/// As [`sort_by_number`], of numbers in order, as those of packed sequences are: counting these one by one would wait for each sum.
#[track_caller]
fn sorted_by_number(count: usize, numbers: &[i32]) -> (Vec<u32>, Vec<u32>) {
    let first = numbers.partition_point(|&number| number < 0);
    assert!(numbers.last().is_none_or(|&last| last < 0 || (last as usize) < count), "number out of range");
    let (mut start, mut begun) = (vec![0u32; count + 1], 0);
    for (place, &number) in numbers[first..].iter().enumerate() {
        // No number is negative here.
        let number = number as usize;
        if number >= begun {
            start[begun..=number].fill(place as u32);
            begun = number + 1;
        }
    }
    start[begun..].fill((numbers.len() - first) as u32);
    (start, (first as u32..numbers.len() as u32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever order numbers come in, places of each are in order.
    #[test]
    fn places_by_number() {
        let mut state = 5u32;
        for (count, len) in [(1, 0), (1, 9), (7, 40), (40, 7), (300, 300)] {
            let mut numbers: Vec<i32> = (0..len)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 16) as i32 % (count as i32 + 2) - 2
                })
                .collect();
            for sorted in [false, true] {
                if sorted {
                    numbers.sort_unstable();
                }
                let (start, order) = sort_by_number(count, &numbers);
                for number in 0..count {
                    let want: Vec<u32> = (0..len as u32).filter(|&i| numbers[i as usize] == number as i32).collect();
                    assert_eq!(order[start[number] as usize..start[number + 1] as usize], want, "{numbers:?}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "out of range")]
    fn sorted_numbers_are_checked() {
        sort_by_number(3, &[-1, 0, 3]);
    }
}
