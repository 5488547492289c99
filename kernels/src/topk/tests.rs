use super::*;
use crate::isa::Isa;

/// A stable sort by descending number, NaNs first.
fn reference(x: &[f32], k: usize) -> Vec<i32> {
    let mut order: Vec<i32> = (0..x.len() as i32).collect();
    let key = |i: i32| if x[i as usize].is_nan() { f32::INFINITY } else { x[i as usize] };
    order.sort_by(|&a, &b| {
        let nan = |i: i32| x[i as usize].is_nan();
        nan(b).cmp(&nan(a)).then(key(b).partial_cmp(&key(a)).unwrap())
    });
    order[..k].to_vec()
}

/// Without ties, so that a bound leaves few.
#[test]
fn the_largest_of_many_different_numbers() {
    for cols in [256, 301, 1024, 40_001] {
        let mut x = vec![0.0; 3 * cols];
        crate::random::normal(&Pool::new(1), 5, 0, 0, &mut x);
        (x[3], x[cols + 9], x[2 * cols - 1]) = (f32::NAN, f32::INFINITY, 9.0);
        for k in [1, 8, 24, 48] {
            let want: Vec<i32> = x.chunks(cols).flat_map(|x| reference(x, k)).collect();
            for isa in Isa::available() {
                let mut idx = vec![-1; 3 * k];
                top_k(&Pool::with_isa(2, isa), 3, cols, k, &x, &mut idx);
                assert_eq!(idx, want, "{k} of {cols} at {isa}");
            }
        }
    }
}

/// Numbers with many ties, infinities, both zeros and some NaNs.
fn row(len: usize, seed: u32, nan: bool) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 16
    };
    let special = [f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, if nan { f32::NAN } else { 1.0 }];
    (0..len)
        .map(|_| match next() % 40 {
            i @ 0..5 => special[i as usize],
            _ => (next() % 64) as f32 - 32.0,
        })
        .collect()
}

#[test]
fn the_largest_in_order() {
    for (cols, ks) in
        [(1, &[1][..]), (7, &[1, 3, 7]), (64, &[1, 2, 8, 64]), (500, &[1, 8, 40, 64, 65, 200, 500]), (5003, &[1, 7, 24, 48])]
    {
        for nan in [false, true] {
            let rows = 9;
            let x: Vec<f32> = (0..rows).flat_map(|r| row(cols, 7 * r + 1, nan)).collect();
            for &k in ks {
                let want: Vec<i32> = x.chunks(cols).flat_map(|x| reference(x, k)).collect();
                for (threads, isa) in Isa::available().flat_map(|isa| [(1, isa), (2, isa)]) {
                    let mut idx = vec![-1; rows as usize * k];
                    top_k(&Pool::with_isa(threads, isa), rows as usize, cols, k, &x, &mut idx);
                    assert_eq!(idx, want, "{k} of {cols}, NaNs: {nan}");
                }
            }
        }
    }
}

#[test]
fn rows_of_nothing_but_nan() {
    let mut idx = vec![0; 3];
    top_k(&Pool::new(1), 1, 40, 3, &[f32::NAN; 40], &mut idx);
    assert_eq!(idx, [0, 1, 2]);
}

#[test]
fn gathered_and_scattered() {
    let (rows, cols, k) = (3, 5, 4);
    let x: Vec<f32> = (0..rows * cols).map(|i| i as f32).collect();
    let idx = [4, 0, -1, 4, 2, 2, 2, 0, -3, -1, 1, 3];
    for threads in [1, 2] {
        let pool = Pool::new(threads);
        let mut picked = vec![f32::NAN; rows * k];
        gather_last(&pool, rows, cols, k, &x, &idx, &mut picked);
        assert_eq!(picked, [4.0, 0.0, 0.0, 4.0, 7.0, 7.0, 7.0, 5.0, 0.0, 0.0, 11.0, 13.0]);
        let mut sums = vec![f32::NAN; rows * cols];
        scatter_last(&pool, rows, cols, k, &picked, &idx, &mut sums);
        assert_eq!(sums, [0.0, 0.0, 0.0, 0.0, 8.0, 5.0, 0.0, 21.0, 0.0, 0.0, 0.0, 11.0, 0.0, 13.0, 0.0]);
    }
}
