//! Splits attention into tasks for the wide levels.

use super::amx;
use super::amx::forward::SplitKeys;
use super::backward::{self, Job, KEYS, Part, Rows};
use super::forward::{Keys, QUERIES, attend};
use super::tile::{self, Bias, Queries, padded};
use super::{Inputs, Saved, Spec};
use crate::gemm::scratch::with_scratch;
use crate::pool::{Disjoint, Pool};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Floats of the partial gradients of queries that may exist at a time, 32 MB. The calling thread keeps
/// them: fresh pages would cost more than the sums.
const PARTIAL: usize = 8 << 20;

/// Tasks that a backward pass is cut into, if its heads and runs are fewer.
const TASKS: usize = 16;

/// Floats of packed keys and values that exist at a time, 4 MB, unless those of one head are more: a share of any
/// third-level cache.
const PACKED: usize = 1 << 20;

/// Rows that are packed by one task, and rows of one head before those of the next.
const PACK_ROWS: usize = 64;
const PACK_TOGETHER: usize = 8;

/// Keys and values of a key head in a run, where they are.
fn keys<'a>(spec: &Spec, x: &Inputs<'a>, run: &Range<usize>, kv_head: usize) -> Keys<'a> {
    let (k_stride, v_stride) = (spec.k_width(), spec.v_width());
    Keys {
        k: &x.k[run.start * k_stride + kv_head * spec.head_dim..],
        v: &x.v[run.start * v_stride + kv_head * spec.value_dim..],
        k_stride,
        v_stride,
        bias: x.bias.map(|all| Bias { all, n: x.segments.len(), heads: spec.heads, start: run.start }),
    }
}

/// A key head of a run.
type Head<'r> = (&'r Range<usize>, usize);

pub(super) fn forward(pool: &Pool, spec: &Spec, x: &Inputs<'_>, runs: &[Range<usize>], o: &mut [f32], lse: &mut [f32]) {
    // Head after head, so that keys stay in cache, and long runs first.
    let mut order: Vec<&Range<usize>> = runs.iter().collect();
    order.sort_by_key(|run| std::cmp::Reverse(run.len()));
    let all: Vec<Head<'_>> = order.into_iter().flat_map(|run| (0..spec.kv_heads).map(move |kv_head| (run, kv_head))).collect();
    let (o, lse) = (Disjoint::new(o), Disjoint::new(lse));
    let (long, mut heads): (Vec<_>, Vec<_>) = all.into_iter().partition(|head| amx::pays(pool.isa(), spec, head.0.len()));
    in_batches(
        &long,
        |head| SplitKeys::floats(spec, head.0.len()),
        |batch, starts, packed| {
            let whole = split(pool, spec, x, batch, starts, Disjoint::new(packed));
            heads.extend(batch.iter().zip(&whole).filter(|(_, whole)| !**whole).map(|(&head, _)| head));
            let (batch, starts): (Vec<_>, Vec<_>) = batch
                .iter()
                .zip(starts)
                .zip(&whole)
                .filter(|(_, whole)| **whole)
                .map(|((&head, &start), _)| (head, start))
                .unzip();
            each_tile(pool, spec, x, &batch, o, lse, |head, queries, sink, out| {
                let (run, kv_head) = batch[head];
                let bias = keys(spec, x, run, kv_head).bias;
                let split = SplitKeys::new(spec, run.len(), &packed[starts[head]..]);
                amx::forward::attend(pool.isa(), spec, queries, x.q, split, bias, sink, out);
            });
        },
    );
    if tile::lies_well(spec.k_width(), spec.head_dim) && tile::lies_well(spec.v_width(), spec.value_dim) {
        return each_tile(pool, spec, x, &heads, o, lse, |head, queries, sink, out| {
            attend(pool.isa(), spec, queries, x.q, keys(spec, x, heads[head].0, heads[head].1), sink, out);
        });
    }
    // Each tile of queries would fetch rows that crowd few sets of the caches, or fill them up, again.
    let [k_pitch, v_pitch] = pitches(spec);
    in_batches(
        &heads,
        |head| head.0.len() * (k_pitch + v_pitch),
        |batch, starts, packed| {
            pack(pool, spec, x, batch, starts, Disjoint::new(packed));
            each_tile(pool, spec, x, batch, o, lse, |head, queries, sink, out| {
                let (run, kv_head) = batch[head];
                let (k, v) = packed[starts[head]..].split_at(run.len() * k_pitch);
                let keys = Keys { k, v, k_stride: k_pitch, v_stride: v_pitch, ..keys(spec, x, run, kv_head) };
                attend(pool.isa(), spec, queries, x.q, keys, sink, out);
            });
        },
    );
}

/// Calls `body` with some heads after another, where each of them begins in scratch of [`PACKED`] floats or as many as one head takes, and
/// that scratch.
fn in_batches<'r>(
    heads: &[Head<'r>],
    floats: impl Fn(&Head<'_>) -> usize,
    mut body: impl FnMut(&[Head<'r>], &[usize], &mut [f32]),
) {
    let mut rest = heads;
    while let Some(first) = rest.first() {
        let mut total = floats(first);
        let others = rest[1..].iter().take_while(|head| {
            total += floats(head);
            total <= PACKED
        });
        let (batch, later) = rest.split_at(1 + others.count());
        rest = later;
        let (mut starts, mut end) = (Vec::with_capacity(batch.len()), 0);
        for head in batch {
            starts.push(end);
            end += floats(head);
        }
        with_scratch(end, |packed| body(batch, &starts, packed));
    }
}

/// Splits keys and values of each head, from its start on. Which of them have only finite ones.
fn split(pool: &Pool, spec: &Spec, x: &Inputs<'_>, heads: &[Head<'_>], starts: &[usize], packed: Disjoint<'_, f32>) -> Vec<bool> {
    let rows = |head: usize| (0..heads[head].0.len()).step_by(PACK_ROWS).map(move |first| (head, first));
    let tasks: Vec<(usize, usize)> = (0..heads.len()).flat_map(rows).collect();
    let whole: Vec<AtomicBool> = heads.iter().map(|_| AtomicBool::new(true)).collect();
    pool.run(tasks.len(), &|task| {
        let (head, first) = tasks[task];
        let (run, kv_head) = heads[head];
        let (len, from) = (run.len(), keys(spec, x, run, kv_head));
        let (rows, out) = (first..len.min(first + PACK_ROWS), packed.after(starts[head]));
        let operands = [(from.k, from.k_stride), (from.v, from.v_stride)];
        // SAFETY: these rows of this head belong to this task.
        if !unsafe { amx::forward::split(pool.isa(), spec, operands, len, rows, &out) } {
            whole[head].store(false, Ordering::Relaxed);
        }
    });
    whole.into_iter().map(AtomicBool::into_inner).collect()
}

/// Distances of packed rows of keys and of values.
fn pitches(spec: &Spec) -> [usize; 2] {
    [spec.head_dim, spec.value_dim].map(|dim| tile::pitch(padded(dim)))
}

/// Copies keys, and behind them values, of each head to its start.
fn pack(pool: &Pool, spec: &Spec, x: &Inputs<'_>, heads: &[Head<'_>], starts: &[usize], packed: Disjoint<'_, f32>) {
    let [k_pitch, v_pitch] = pitches(spec);
    // A task has some rows of all heads of a run, since these are adjacent.
    let mut tasks = Vec::new();
    let mut end = 0;
    for heads in heads.chunk_by(|a, b| a.0 == b.0) {
        let numbers = end..end + heads.len();
        end = numbers.end;
        tasks.extend((0..heads[0].0.len()).step_by(PACK_ROWS).map(|first| (numbers.clone(), first)));
    }
    pool.run(tasks.len(), &|task| {
        let (numbers, first) = &tasks[task];
        let len = heads[numbers.start].0.len();
        for first in (*first..len.min(first + PACK_ROWS)).step_by(PACK_TOGETHER) {
            let rows = PACK_TOGETHER.min(len - first);
            for number in numbers.clone() {
                let from = keys(spec, x, heads[number].0, heads[number].1);
                let k_start = starts[number] + first * k_pitch;
                let v_start = starts[number] + len * k_pitch + first * v_pitch;
                // SAFETY: these rows of these heads belong to this task.
                let (k, v) = unsafe { (packed.slice(k_start, rows * k_pitch), packed.slice(v_start, rows * v_pitch)) };
                tile::pack(pool.isa(), &from.k[first * from.k_stride..], rows, from.k_stride, spec.head_dim, k);
                tile::pack(pool.isa(), &from.v[first * from.v_stride..], rows, from.v_stride, spec.value_dim, v);
            }
        }
    });
}

/// Receives a lane's sums, and what [`attend`] says of them.
type Out<'a> = &'a mut dyn FnMut(usize, &[f32], f32, f32);

/// All query heads of some key heads of runs: `attend` computes a tile of queries of a key head, given by its number.
fn each_tile(
    pool: &Pool,
    spec: &Spec,
    x: &Inputs<'_>,
    heads: &[Head<'_>],
    o: Disjoint<'_, f32>,
    lse: Disjoint<'_, f32>,
    attend: impl Fn(usize, &Queries<QUERIES>, Option<f32>, Out<'_>) + Sync,
) {
    let (n, group) = (x.segments.len(), spec.group());
    // In each head long tiles first: with a causal mask those at the end of a run cost the most. The last tasks are then the
    // short tiles of a short run.
    let tiles: Vec<(usize, usize, usize)> = (0..heads.len())
        .flat_map(|number| (0..group).map(move |member| (number, member)))
        .flat_map(|(number, member)| (0..heads[number].0.len()).step_by(QUERIES).rev().map(move |begin| (number, member, begin)))
        .collect();
    pool.run(tiles.len(), &|task| {
        let (number, member, begin) = tiles[task];
        let (run, kv_head) = heads[number];
        let head = kv_head * group + member;
        let count = QUERIES.min(run.len() - begin);
        let first = run.start + begin;
        let places = (0..count).map(|i| ((first + i) * spec.heads + head, begin + i));
        let queries = Queries::new(spec, run.len(), places);
        let sink = x.sinks.map(|sinks| sinks[head]);
        attend(number, &queries, sink, &mut |lane, result, factor, log_sum| {
            // SAFETY: each head of each token belongs to one task.
            unsafe {
                let out = o.slice(queries.row[lane] * spec.value_dim, spec.value_dim);
                tile::scaled(pool.isa(), result, factor, out);
                lse.slice(head * n + first + lane, 1)[0] = log_sum;
            }
        });
    });
}

/// A task of the backward pass: some keys of a key head in a run, with all query heads of it.
struct Task {
    run: Range<usize>,
    kv_head: usize,
    keys: Range<usize>,
    /// Number among the parts of the key head in the run.
    part: usize,
    /// About how many scores it computes.
    work: usize,
    /// Where its tiles of queries are noted as visited.
    visited: usize,
    /// Where its partial gradients of queries begin, unless they are the output itself.
    partial: Option<usize>,
}

/// Queries that see a tile of keys, about.
fn seers(spec: &Spec, len: usize, start: usize) -> usize {
    let all = if spec.causal { len - start } else { len };
    let reach = spec.window.unwrap_or(len).min(spec.chunk.unwrap_or(len));
    all.min(reach.saturating_mul(if spec.causal { 1 } else { 2 }).saturating_add(KEYS))
}

/// Cuts the keys of a run into at most `parts` ranges of about equal work.
fn cut(spec: &Spec, len: usize, parts: usize) -> Vec<(Range<usize>, usize)> {
    let work = |start: usize| seers(spec, len, start) * KEYS.min(len - start);
    let total: usize = (0..len).step_by(KEYS).map(work).sum();
    let (mut ranges, mut begin, mut done, mut before) = (Vec::new(), 0, 0, 0);
    for start in (0..len).step_by(KEYS) {
        done += work(start);
        let end = len.min(start + KEYS);
        // The next tile would leave this part's share farther behind than this one does.
        let share = total * (ranges.len() + 1) / parts;
        if end == len || done + work(end) / 2 >= share {
            ranges.push((begin..end, done - before));
            (begin, before) = (end, done);
        }
    }
    ranges
}

/// All tasks, long ones first, with how many marks and partial gradients they need. By shape alone, so
/// that sums do not depend on threads.
fn tasks(spec: &Spec, runs: &[Range<usize>], direct: bool) -> (Vec<Task>, usize, usize) {
    let (group, width) = (spec.group(), padded(spec.head_dim));
    let whole: Vec<usize> = runs.iter().map(|run| cut(spec, run.len(), 1)[0].1).collect();
    let total = whole.iter().sum::<usize>() * spec.kv_heads;
    let mut wanted = TASKS;
    loop {
        let (mut tasks, mut visited, mut partial) = (Vec::new(), 0, 0);
        for (run, work) in runs.iter().zip(&whole) {
            let parts = cut(spec, run.len(), (work * wanted).div_ceil(total.max(1)));
            for kv_head in 0..spec.kv_heads {
                for (part, (keys, work)) in parts.iter().cloned().enumerate() {
                    let to_output = part == 0 && direct;
                    let place = (!to_output).then_some(partial);
                    tasks.push(Task { run: run.clone(), kv_head, keys, part, work, visited, partial: place });
                    visited += group * run.len().div_ceil(backward::QUERIES);
                    partial += if to_output { 0 } else { group * run.len() * width };
                }
            }
        }
        if partial <= PARTIAL || wanted == 1 {
            tasks.sort_by_key(|task| std::cmp::Reverse(task.work));
            return (tasks, visited, partial);
        }
        wanted /= 2;
    }
}

pub(super) fn backward(
    pool: &Pool,
    spec: &Spec,
    x: &Inputs<'_>,
    runs: &[Range<usize>],
    saved: &Saved<'_>,
    d_q: &mut [f32],
    d_k: &mut [f32],
    d_v: &mut [f32],
    mut d_bias: Option<&mut [f32]>,
) {
    let (group, dim, width) = (spec.group(), spec.head_dim, padded(spec.head_dim));
    if let Some(d_bias) = &mut d_bias {
        pool.run_pieces(d_bias, 1 << 16, |_, part| part.fill(0.0));
    }
    let d_bias = d_bias.map(Disjoint::new);
    // Sums of whole vectors are made in place.
    let direct = dim == width;
    let (tasks, marks, floats) = tasks(spec, runs, direct);
    let (d_q, d_k, d_v) = (Disjoint::new(d_q), Disjoint::new(d_k), Disjoint::new(d_v));
    let mut visited = vec![false; marks];
    with_scratch(floats, |partial| {
        let (partial, marks) = (Disjoint::new(partial), Disjoint::new(&mut visited));
        // Gradients of a query head in a run, for a task.
        let rows = |task: &Task, head: usize| match task.partial {
            None => {
                let start = (task.run.start * spec.heads + head) * dim;
                Rows { start: d_q.after(start).as_mut_ptr(), stride: spec.q_width() }
            }
            Some(place) => {
                let start = place + (head - task.kv_head * group) * task.run.len() * width;
                Rows { start: partial.after(start).as_mut_ptr(), stride: width }
            }
        };
        pool.run(tasks.len(), &|number| {
            let task = &tasks[number];
            // SAFETY: each task has marks of its own.
            let visited = unsafe { marks.slice(task.visited, group * task.run.len().div_ceil(backward::QUERIES)) };
            let part = Part { run: task.run.clone(), kv_head: task.kv_head, keys: task.keys.clone(), visited };
            let keys = keys(spec, x, &task.run, task.kv_head);
            let job = Job { isa: pool.isa(), spec, x, saved, keys, part, d_bias: d_bias.as_ref() };
            let out = |key: usize, d_key: &[f32], d_value: &[f32]| {
                let row = (task.run.start + key) * spec.kv_heads + task.kv_head;
                // SAFETY: each key of a key head belongs to one task.
                unsafe {
                    d_k.slice(row * dim, dim).copy_from_slice(d_key);
                    d_v.slice(row * spec.value_dim, spec.value_dim).copy_from_slice(d_value);
                }
            };
            let split = amx::pays(pool.isa(), spec, task.run.len());
            let d_q = |head: usize| rows(task, head);
            // SAFETY: one part of each key head in each run has the output, the others have room of their own.
            unsafe {
                if split {
                    amx::backward::run(job, d_q, out);
                } else {
                    backward::run(job, d_q, out);
                }
            }
        });
        // Add the parts of each tile of queries, in the order of their keys.
        let mut parts: Vec<&Task> = tasks.iter().collect();
        parts.sort_by_key(|task| (task.run.start, task.kv_head, task.part));
        let sums: Vec<&[&Task]> = parts.chunk_by(|a, b| (a.run.start, a.kv_head) == (b.run.start, b.kv_head)).collect();
        pool.run(sums.len() * group, &|number| {
            let (parts, member) = (sums[number / group], number % group);
            let (run, head) = (&parts[0].run, parts[0].kv_head * group + member);
            let tiles = run.len().div_ceil(backward::QUERIES);
            for tile in 0..tiles {
                let rows_of_tile = tile * backward::QUERIES..run.len().min((tile + 1) * backward::QUERIES);
                let mut begun = false;
                for task in parts {
                    // SAFETY: marks are only read now.
                    if !unsafe { marks.slice(task.visited + member * tiles + tile, 1) }[0] {
                        continue;
                    }
                    // What the first part summed in place is there already.
                    if task.partial.is_some() {
                        let from = rows(task, head);
                        for i in rows_of_tile.clone() {
                            // SAFETY: this query head of the run belongs to this task now, and the parts are
                            // complete, with `dim` floats for each query, and elsewhere.
                            let (out, from) = unsafe {
                                let out = d_q.slice(((run.start + i) * spec.heads + head) * dim, dim);
                                (out, std::slice::from_raw_parts(from.start.add(i * from.stride), dim))
                            };
                            if begun {
                                out.iter_mut().zip(from).for_each(|(out, from)| *out += *from);
                            } else {
                                out.copy_from_slice(from);
                            }
                        }
                    }
                    begun = true;
                }
                if !begun {
                    for i in rows_of_tile {
                        // SAFETY: as above.
                        unsafe { d_q.slice(((run.start + i) * spec.heads + head) * dim, dim) }.fill(0.0);
                    }
                }
            }
        });
    });
}
