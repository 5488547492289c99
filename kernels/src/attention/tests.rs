//! Parity with the scalar specification, which is itself held to finite differences.

use super::*;

const PLAIN: Spec = Spec {
    heads: 4,
    kv_heads: 2,
    head_dim: 16,
    value_dim: 16,
    scale: 0.25,
    causal: true,
    window: None,
    chunk: None,
    pinned: 0,
    softcap: None,
};

/// What a test adds to the plain inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
struct More {
    sinks: bool,
    bias: bool,
}

const NOTHING: More = More { sinks: false, bias: false };

fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut x = vec![0.0; len];
    crate::random::normal(&Pool::new(1), seed, 0, 0, &mut x);
    x
}

/// Queries, keys, values, sinks and bias; the last two may be empty.
fn inputs(spec: &Spec, n: usize, more: More) -> [Vec<f32>; 5] {
    [
        values(n * spec.q_width(), 1),
        values(n * spec.k_width(), 2),
        values(n * spec.v_width(), 3),
        values(if more.sinks { spec.heads } else { 0 }, 5),
        values(if more.bias { spec.heads * n * n } else { 0 }, 6),
    ]
}

fn view<'a>(x: &'a [Vec<f32>; 5], segments: &'a [i32]) -> Inputs<'a> {
    let some = |x: &'a Vec<f32>| (!x.is_empty()).then_some(x.as_slice());
    Inputs { q: &x[0], k: &x[1], v: &x[2], segments, sinks: some(&x[3]), bias: some(&x[4]) }
}

/// `o`, `lse`, `d_q`, `d_k`, `d_v`, `d_sinks`, `d_bias`.
fn all(pool: &Pool, spec: &Spec, segments: &[i32], more: More) -> [Vec<f32>; 7] {
    let n = segments.len();
    let x = inputs(spec, n, more);
    let d_o = values(n * spec.o_width(), 4);
    let (mut o, mut lse) = (vec![9.0; d_o.len()], vec![9.0; spec.heads * n]);
    forward(pool, spec, &view(&x, segments), &mut o, &mut lse);
    let mut d = [0, 1, 2, 3, 4].map(|i| vec![9.0; x[i].len()]);
    let [d_q, d_k, d_v, d_sinks, d_bias] = &mut d;
    let gradients = Gradients { d_q, d_k, d_v, d_sinks: Some(d_sinks), d_bias: Some(d_bias) };
    backward(pool, spec, &view(&x, segments), &Saved { o: &o, lse: &lse, d_o: &d_o }, gradients);
    let [d_q, d_k, d_v, d_sinks, d_bias] = d;
    [o, lse, d_q, d_k, d_v, d_sinks, d_bias]
}

fn packed(lengths: &[usize]) -> Vec<i32> {
    lengths.iter().enumerate().flat_map(|(i, &len)| std::iter::repeat_n(i as i32, len)).collect()
}

#[track_caller]
fn close(got: &[Vec<f32>; 7], want: &[Vec<f32>; 7], tolerance: f32, what: &str) {
    let names = ["o", "lse", "d_q", "d_k", "d_v", "d_sinks", "d_bias"];
    for (name, (got, want)) in names.iter().zip(got.iter().zip(want)) {
        assert_eq!(got.len(), want.len());
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let same = (got - want).abs() <= tolerance * want.abs().max(1.0);
            assert!(same, "{name}[{i}] {got} {want}, {what}");
        }
    }
}

#[test]
fn levels_agree_and_threads_do_not_matter() {
    let specs = [
        PLAIN,
        Spec { causal: false, ..PLAIN },
        Spec { window: Some(20), ..PLAIN },
        Spec { window: Some(20), pinned: 3, ..PLAIN },
        Spec { window: Some(70), causal: false, head_dim: 8, value_dim: 8, ..PLAIN },
        Spec { window: Some(7), causal: false, pinned: 70, ..PLAIN },
        Spec { chunk: Some(24), ..PLAIN },
        Spec { chunk: Some(90), window: Some(50), causal: false, pinned: 1, ..PLAIN },
        Spec { softcap: Some(1.5), head_dim: 36, value_dim: 36, ..PLAIN },
        Spec { heads: 3, kv_heads: 3, head_dim: 64, value_dim: 64, scale: 0.125, ..PLAIN },
        Spec { heads: 3, kv_heads: 1, head_dim: 100, value_dim: 24, scale: 0.1, ..PLAIN },
        Spec { heads: 2, kv_heads: 2, head_dim: 7, value_dim: 33, ..PLAIN },
        Spec { heads: 1, kv_heads: 1, head_dim: 1, value_dim: 1, ..PLAIN },
        Spec { heads: 1, kv_heads: 1, head_dim: 4, value_dim: 4, ..PLAIN },
    ];
    for spec in specs {
        for more in [NOTHING, More { sinks: true, bias: false }, More { sinks: true, bias: true }] {
            for lengths in [&[1][..], &[5, 1, 64], &[65, 3], &[200], &[130, 64, 17]] {
                let segments = packed(lengths);
                let want = all(&Pool::with_isa(1, Isa::Scalar), &spec, &segments, more);
                for isa in Isa::available() {
                    let got = all(&Pool::with_isa(1, isa), &spec, &segments, more);
                    assert_eq!(got, all(&Pool::with_isa(2, isa), &spec, &segments, more));
                    close(&got, &want, 1e-5, &format!("{isa}, {spec:?} {more:?} {lengths:?}"));
                }
            }
        }
    }
}

#[test]
fn long_runs_are_cut() {
    let odd = Spec { heads: 6, kv_heads: 2, head_dim: 7, value_dim: 5, ..PLAIN };
    for spec in [
        PLAIN,
        Spec { window: Some(100), ..PLAIN },
        Spec { chunk: Some(300), value_dim: 5, ..PLAIN },
        Spec { kv_heads: 1, ..PLAIN },
        Spec { causal: false, ..odd },
        Spec { window: Some(40), pinned: 2, softcap: Some(3.0), ..odd },
    ] {
        for more in [NOTHING, More { sinks: true, bias: true }] {
            let segments = packed(&[600, 30, 1]);
            let want = all(&Pool::with_isa(2, Isa::Scalar), &spec, &segments, more);
            for isa in Isa::available() {
                let got = all(&Pool::with_isa(1, isa), &spec, &segments, more);
                assert_eq!(got, all(&Pool::with_isa(2, isa), &spec, &segments, more));
                assert_eq!(got, all(&Pool::with_isa(5, isa), &spec, &segments, more));
                close(&got, &want, 3e-5, &format!("{isa} {spec:?} {more:?}"));
            }
        }
    }
}

#[test]
fn all_sizes_of_heads() {
    let sizes = [32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256].map(|dim| (dim, dim));
    for (head_dim, value_dim) in sizes.into_iter().chain([(192, 128), (40, 200), (576, 512)]) {
        let scale = (head_dim as f32).sqrt().recip();
        let spec = Spec { heads: 2, kv_heads: 1, head_dim, value_dim, scale, ..PLAIN };
        let segments = packed(&[70, 203]);
        let want = all(&Pool::with_isa(2, Isa::Scalar), &spec, &segments, NOTHING);
        for isa in Isa::available() {
            let got = all(&Pool::with_isa(2, isa), &spec, &segments, NOTHING);
            close(&got, &want, 2e-5, &format!("{isa} {spec:?}"));
        }
    }
}

#[test]
fn scales_of_any_sign() {
    for scale in [-0.25, 0.0] {
        let (spec, segments) = (Spec { scale, ..PLAIN }, packed(&[130]));
        let want = all(&Pool::with_isa(1, Isa::Scalar), &spec, &segments, NOTHING);
        for isa in Isa::available() {
            close(&all(&Pool::with_isa(2, isa), &spec, &segments, NOTHING), &want, 1e-5, &format!("{isa} {scale}"));
        }
    }
}

#[test]
fn gradients_match_finite_differences() {
    let small = Spec { heads: 2, kv_heads: 1, head_dim: 4, value_dim: 3, ..PLAIN };
    for spec in [
        Spec { softcap: Some(2.0), window: Some(4), ..small },
        Spec { causal: false, chunk: Some(3), ..small },
        Spec { window: Some(2), pinned: 1, softcap: Some(1.5), ..small },
    ] {
        let segments = packed(&[6, 3]);
        let more = More { sinks: true, bias: true };
        let pool = Pool::with_isa(1, Isa::Scalar);
        let x = inputs(&spec, 9, more);
        let d_o = values(9 * spec.o_width(), 4);
        let loss = |x: &[Vec<f32>; 5]| {
            let (mut o, mut lse) = (vec![0.0; d_o.len()], vec![0.0; spec.heads * 9]);
            forward(&pool, &spec, &view(x, &segments), &mut o, &mut lse);
            o.iter().zip(&d_o).map(|(&o, &d)| f64::from(o) * f64::from(d)).sum::<f64>()
        };
        let [_, _, gradients @ ..] = all(&pool, &spec, &segments, more);
        for which in 0..5 {
            for i in 0..x[which].len() {
                let at = |step: f32| {
                    let mut x = x.clone();
                    x[which][i] += step;
                    (loss(&x), f64::from(x[which][i]))
                };
                let ((up, a), (down, b)) = (at(1e-2), at(-1e-2));
                let slope = (up - down) / (a - b);
                assert!((slope - f64::from(gradients[which][i])).abs() < 2e-3, "{which} {i} {spec:?}");
            }
        }
    }
}

#[test]
fn a_sink_takes_its_share() {
    // With all scores zero, each of the keys and the sink weigh the same.
    let spec = Spec { heads: 1, kv_heads: 1, ..PLAIN };
    for isa in Isa::available() {
        let (mut o, mut lse) = (vec![0.0; 3 * 16], vec![0.0; 3]);
        let (zero, one) = (vec![0.0; 3 * 16], vec![1.0; 3 * 16]);
        let x = Inputs { q: &zero, k: &zero, v: &one, segments: &[0; 3], sinks: Some(&[0.0]), bias: None };
        forward(&Pool::with_isa(1, isa), &spec, &x, &mut o, &mut lse);
        for (i, row) in o.chunks_exact(16).enumerate() {
            let keys = i as f32 + 1.0;
            assert!(row.iter().all(|o| (o - keys / (keys + 1.0)).abs() < 1e-6) && (lse[i] - (keys + 1.0).ln()).abs() < 1e-6);
        }
    }
}

#[test]
fn a_nan_stays_in_its_run() {
    let segments = packed(&[70, 70]);
    let n = segments.len();
    let mut x = inputs(&PLAIN, n, NOTHING);
    x[0][100 * 64] = f32::NAN;
    for isa in Isa::available() {
        let (mut o, mut lse) = (vec![0.0; n * 64], vec![0.0; 4 * n]);
        forward(&Pool::with_isa(1, isa), &PLAIN, &view(&x, &segments), &mut o, &mut lse);
        assert!(o[100 * 64].is_nan() && lse[100].is_nan());
        assert_eq!(o.iter().filter(|o| o.is_nan()).count(), 16);
    }
}

#[test]
fn what_is_not_finite_reaches_those_that_see_it() {
    let (segments, at) = (packed(&[70, 300, 70]), 200);
    let n = segments.len();
    for (which, value) in [(1, f32::NAN), (1, f32::INFINITY), (2, f32::NAN), (2, f32::INFINITY), (2, f32::NEG_INFINITY)] {
        let mut x = inputs(&PLAIN, n, NOTHING);
        // The first key head, which the first two of four query heads use.
        x[which][at * 32] = value;
        let d_o = values(n * 64, 4);
        for isa in Isa::available() {
            let pool = Pool::with_isa(2, isa);
            let (mut o, mut lse) = (vec![0.0; n * 64], vec![0.0; 4 * n]);
            forward(&pool, &PLAIN, &view(&x, &segments), &mut o, &mut lse);
            let mut d = [0, 1, 2].map(|i| vec![0.0; x[i].len()]);
            let [d_q, d_k, d_v] = &mut d;
            let gradients = Gradients { d_q, d_k, d_v, d_sinks: None, d_bias: None };
            backward(&pool, &PLAIN, &view(&x, &segments), &Saved { o: &o, lse: &lse, d_o: &d_o }, gradients);
            for token in 0..n {
                let finite = |x: &[f32], width: usize| x[token * width..][..width].iter().all(|x| x.is_finite());
                let what = format!("{which} {value} {isa} {token}");
                if (at..370).contains(&token) && which == 2 {
                    assert!(!o[token * 64].is_finite() && !finite(&d[0], 64), "{what}");
                }
                if (at..370).contains(&token) && value.is_nan() {
                    assert!(o[token * 64].is_nan() && o[token * 64 + 16].is_nan(), "{what}");
                }
                // Other runs and other heads are as they were.
                if !(70..370).contains(&token) {
                    assert!(finite(&o, 64) && finite(&d[0], 64) && finite(&d[1], 32) && finite(&d[2], 32), "{what}");
                }
                assert!(o[token * 64 + 32..][..32].iter().all(|o| o.is_finite()), "{what}");
            }
        }
    }
}

#[test]
fn heads_are_packed_in_batches() {
    // Four key heads of 1000 rows of 2 x 272 floats: one at a time; rows a multiple of 4 KB apart, or not whole vectors.
    let wide = Spec { heads: 4, kv_heads: 4, head_dim: 256, value_dim: 256, scale: 0.0625, window: Some(9), ..PLAIN };
    for spec in [wide, Spec { heads: 8, head_dim: 250, value_dim: 200, pinned: 3, ..wide }] {
        let segments = packed(&[1000, 37, 400]);
        let want = all(&Pool::with_isa(2, Isa::Scalar), &spec, &segments, NOTHING);
        for isa in Isa::available() {
            let got = all(&Pool::with_isa(1, isa), &spec, &segments, NOTHING);
            assert_eq!(got, all(&Pool::with_isa(3, isa), &spec, &segments, NOTHING));
            close(&got, &want, 2e-5, &format!("{isa} {spec:?}"));
        }
    }
}

#[test]
fn any_alignment_gives_the_same_bits() {
    let segments = packed(&[150, 20]);
    let n = segments.len();
    for spec in [PLAIN, Spec { head_dim: 64, value_dim: 64, ..PLAIN }, Spec { head_dim: 20, value_dim: 12, ..PLAIN }] {
        let x = inputs(&spec, n, NOTHING);
        let d_o = values(n * spec.o_width(), 4);
        for isa in Isa::available() {
            let pool = Pool::with_isa(2, isa);
            let run = |shift: usize| {
                let later = |values: &[f32]| [vec![0.0; shift], values.to_vec()].concat();
                let [q, k, v, d_o] = [&x[0], &x[1], &x[2], &d_o].map(|values| later(values));
                let x = Inputs { q: &q[shift..], k: &k[shift..], v: &v[shift..], segments: &segments, sinks: None, bias: None };
                let (mut o, mut lse) = (vec![9.0; d_o.len()], vec![9.0; shift + spec.heads * n]);
                forward(&pool, &spec, &x, &mut o[shift..], &mut lse[shift..]);
                let [mut d_q, mut d_k, mut d_v] = [&q, &k, &v].map(|values| vec![9.0; values.len()]);
                let (d_q_out, d_k_out, d_v_out) = (&mut d_q[shift..], &mut d_k[shift..], &mut d_v[shift..]);
                let d = Gradients { d_q: d_q_out, d_k: d_k_out, d_v: d_v_out, d_sinks: None, d_bias: None };
                let saved = Saved { o: &o[shift..], lse: &lse[shift..], d_o: &d_o[shift..] };
                backward(&pool, &spec, &x, &saved, d);
                [o, lse, d_q, d_k, d_v].map(|values| values[shift..].to_vec())
            };
            assert_eq!(run(0), run(1), "{isa} {spec:?}");
        }
    }
}

#[test]
fn zeros_attend_to_all_alike() {
    let (segments, spec) = (packed(&[100, 300]), Spec { causal: false, ..PLAIN });
    let n = segments.len();
    let mut x = inputs(&spec, n, NOTHING);
    x[0].fill(0.0);
    for isa in Isa::available() {
        let (mut o, mut lse) = (vec![9.0; n * 64], vec![9.0; 4 * n]);
        forward(&Pool::with_isa(2, isa), &spec, &view(&x, &segments), &mut o, &mut lse);
        for run in [0..100, 100..400] {
            let len = run.len() as f32;
            for c in 0..64 {
                let from = c / 32 * 16 + c % 16;
                let mean = run.clone().map(|j| x[2][j * 32 + from]).sum::<f32>() / len;
                assert!(run.clone().all(|i| (o[i * 64 + c] - mean).abs() < 1e-5), "{isa}");
            }
            assert!(run.clone().all(|i| (lse[i] - len.ln()).abs() < 1e-5), "{isa}");
        }
    }
}

/// Outputs of a sequence that is fed in steps of these lengths, twice at a time: to slots 2 and 0.
fn in_steps(pool: &Pool, spec: &Spec, format: CacheFormat, lengths: &[usize], sinks: Option<&[f32]>) -> Vec<f32> {
    let n: usize = lengths.iter().sum();
    let (q, k, v) = (values(n * spec.q_width(), 1), values(n * spec.k_width(), 2), values(n * spec.v_width(), 3));
    let columns = n.div_ceil(PAGE);
    // Pages backwards; slot 1 has none.
    let pages = 2 * columns;
    let page = |i: usize| if i / columns == 1 { -1 } else { (pages - 1 - i / columns / 2 * columns - i % columns) as i32 };
    let table: Vec<i32> = (0..3 * columns).map(page).collect();
    let garbage = f32::NAN.to_bits();
    let mut k_cache = vec![garbage; pages * spec.kv_heads * format.head_words(spec.head_dim)];
    let mut v_cache = vec![garbage; pages * spec.kv_heads * format.head_words(spec.value_dim)];
    let (mut out, mut start) = (Vec::new(), 0);
    for &len in lengths {
        let twice = |x: &[f32], width: usize| x[start * width..(start + len) * width].repeat(2);
        let positions = (start as i32..(start + len) as i32).collect::<Vec<_>>().repeat(2);
        let slots: Vec<i32> = (0..2 * len).map(|i| if i < len { 2 } else { 0 }).collect();
        let (q, k, v) = (twice(&q, spec.q_width()), twice(&k, spec.k_width()), twice(&v, spec.v_width()));
        let step = Step { q: &q, k: &k, v: &v, slots: &slots, positions: &positions, table: &table, columns, sinks };
        let mut o = vec![0.0; 2 * len * spec.o_width()];
        cached(pool, spec, &step, format, &mut k_cache, &mut v_cache, &mut o).unwrap();
        let (one, other) = o.split_at(len * spec.o_width());
        assert!(one == other, "both sequences at {start}");
        out.extend_from_slice(one);
        start += len;
    }
    out
}

#[test]
fn a_cache_filled_in_steps_equals_the_whole() {
    let sinks = [0.5, -1.0, 2.0, 0.0, 1.0, -0.5, 0.25];
    for spec in [
        PLAIN,
        Spec { window: Some(30), ..PLAIN },
        Spec { window: Some(3), heads: 6, pinned: 2, ..PLAIN },
        Spec { chunk: Some(100), softcap: Some(2.0), ..PLAIN },
        Spec { kv_heads: 1, head_dim: 24, value_dim: 20, ..PLAIN },
        Spec { heads: 7, kv_heads: 1, head_dim: 64, value_dim: 128, scale: 0.125, ..PLAIN },
        Spec { heads: 2, head_dim: 256, value_dim: 256, scale: 0.0625, ..PLAIN },
        Spec { head_dim: 3, value_dim: 1, ..PLAIN },
    ] {
        let n = 330;
        for sinks in [None, Some(&sinks[..spec.heads])] {
            let (q, k, v) = (values(n * spec.q_width(), 1), values(n * spec.k_width(), 2), values(n * spec.v_width(), 3));
            let (mut want, mut lse) = (vec![0.0; n * spec.o_width()], vec![0.0; spec.heads * n]);
            let x = Inputs { q: &q, k: &k, v: &v, segments: &vec![0; n], sinks, bias: None };
            forward(&Pool::new(2), &spec, &x, &mut want, &mut lse);
            for format in CacheFormat::ALL {
                let specification = in_steps(&Pool::with_isa(2, Isa::Scalar), &spec, format, &[n], sinks);
                // The specification takes long for large heads.
                for isa in Isa::available().filter(|&isa| isa > Isa::Scalar || spec.head_dim < 64) {
                    let pool = Pool::with_isa(2, isa);
                    let got = in_steps(&pool, &spec, format, &[1, 1, 90, 7, 1, 100, 1, 1, 128], sinks);
                    // However it is cut, and on however many threads: the same bits.
                    assert_eq!(got, in_steps(&Pool::with_isa(1, isa), &spec, format, &[n], sinks), "{spec:?} {format:?}");
                    assert_eq!(got, in_steps(&Pool::with_isa(3, isa), &spec, format, &[329, 1], sinks), "{spec:?} {format:?}");
                    for (got, want) in got.iter().zip(&specification) {
                        assert!((got - want).abs() < 1e-5, "{got} {want} {isa} {spec:?} {format:?}");
                    }
                }
                let tolerance = [1e-5, 4e-3, 6e-2][format as usize];
                let worst = specification.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < tolerance, "{worst} {spec:?} {format:?}");
            }
        }
    }
}

#[test]
fn long_contexts_are_read_in_parts() {
    let n = 5000;
    for spec in [
        PLAIN,
        Spec { window: Some(3000), pinned: 100, ..PLAIN },
        Spec { kv_heads: 1, head_dim: 64, value_dim: 32, softcap: Some(4.0), ..PLAIN },
    ] {
        let (q, k, v) = (values(n * spec.q_width(), 1), values(n * spec.k_width(), 2), values(n * spec.v_width(), 3));
        let columns = n.div_ceil(PAGE);
        let table: Vec<i32> = (0..columns as i32).rev().collect();
        for format in CacheFormat::ALL {
            let step = |pool: &Pool, rows: Range<usize>, caches: &mut [Vec<u32>; 2]| {
                let part = |x: &[f32], width: usize| x[rows.start * width..rows.end * width].to_vec();
                let (q, k, v) = (part(&q, spec.q_width()), part(&k, spec.k_width()), part(&v, spec.v_width()));
                let (slots, positions) = (vec![0; rows.len()], (rows.start as i32..rows.end as i32).collect::<Vec<_>>());
                let (q, k, v, slots, positions, table) = (&q, &k, &v, &slots, &positions, &table);
                let step = Step { q, k, v, slots, positions, table, columns, sinks: None };
                let mut o = vec![0.0; rows.len() * spec.o_width()];
                let [k_cache, v_cache] = caches;
                cached(pool, &spec, &step, format, k_cache, v_cache, &mut o).unwrap();
                o
            };
            let mut caches = [spec.head_dim, spec.value_dim].map(|dim| vec![0; columns * spec.kv_heads * format.head_words(dim)]);
            step(&Pool::new(2), 0..n - 1, &mut caches);
            let want = step(&Pool::with_isa(1, Isa::Scalar), n - 1..n, &mut caches.clone());
            for isa in Isa::available() {
                let got = step(&Pool::with_isa(1, isa), n - 1..n, &mut caches.clone());
                assert_eq!(got, step(&Pool::with_isa(7, isa), n - 1..n, &mut caches.clone()), "{isa} {spec:?} {format:?}");
                for (got, want) in got.iter().zip(&want) {
                    assert!((got - want).abs() < 1e-5, "{got} {want} {isa} {spec:?} {format:?}");
                }
            }
        }
    }
}

#[test]
fn places_outside_a_cache_are_named() {
    let spec = Spec { heads: 1, kv_heads: 1, window: Some(10), ..PLAIN };
    let (q, pool) = (values(16, 1), Pool::new(1));
    let words = CacheFormat::F32.head_words(16);
    let run = |slot: i32, position: i32, table: [i32; 4]| {
        let (mut k, mut v) = (vec![0; 3 * words], vec![0; 3 * words]);
        let step = Step { q: &q, k: &q, v: &q, slots: &[slot], positions: &[position], table: &table, columns: 2, sinks: None };
        let result = cached(&pool, &spec, &step, CacheFormat::F32, &mut k, &mut v, &mut [0.0; 16]);
        assert!(result.is_ok() || k.iter().all(|&word| word == 0));
        result
    };
    let outside = |what, value, at, limit| Err(Outside { what, value, at, limit });
    assert_eq!(run(2, 0, [0; 4]), outside("cache slot", 2, 0, 2));
    assert_eq!(run(-1, 0, [0; 4]), outside("cache slot", -1, 0, 2));
    assert_eq!(run(0, 128, [0; 4]), outside("cache position", 128, 0, 128));
    assert_eq!(run(1, 70, [0, 0, 1, 3]), outside("cache page", 3, 3, 3));
    assert_eq!(run(1, 70, [0, 0, -1, 2]), outside("cache page", -1, 2, 3));
    // The window has left the first page.
    assert_eq!(run(1, 80, [0, 0, -1, 2]), Ok(()));
}
