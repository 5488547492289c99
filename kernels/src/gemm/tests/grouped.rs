//! Groups of products, and the fallback for other processors.

use super::pools;
use crate::gemm::blocked::Sizes;
use crate::gemm::{MatRef, Member, fallback, gemm, gemm_grouped};
use crate::pool::{Disjoint, Pool};
use crate::quant::tests::noise;

#[test]
fn groups_are_single_products() {
    let sizes = [(3, 40, 17), (0, 40, 17), (300, 40, 17), (1, 40, 17), (20, 33, 64), (7, 5, 0)];
    for pool in pools() {
        let data: Vec<(Vec<f32>, Vec<f32>)> =
            sizes.iter().map(|&(m, n, k)| (noise(m * k, m as u32), noise(k * n, n as u32))).collect();
        let mut start = 1;
        let members: Vec<Member<'_>> = sizes
            .iter()
            .zip(&data)
            .map(|(&(m, n, k), (a, b))| {
                let member = Member { m, n, k, a: MatRef::new(a, k), b: MatRef::new(b, n), c: start, ldc: n + 1 };
                start += m * (n + 1) + 2;
                member
            })
            .collect();
        let old = noise(start, 9);
        let mut c = old.clone();
        gemm_grouped(&pool, 0.5, &members, &mut c, 1.0);
        let mut expected = old;
        for member in &members {
            let Member { m, n, k, a, b, c, ldc } = *member;
            gemm(&pool, m, n, k, 0.5, a, b, &mut expected[c..], ldc, 1.0);
        }
        assert_eq!(c, expected, "{}", pool.isa());
    }
}

#[test]
#[should_panic(expected = "outputs of the group overlap")]
fn overlapping_members_are_refused() {
    let data = [0.0; 16];
    let matrix = MatRef::new(&data[..], 4);
    let member = |c| Member { m: 4, n: 4, k: 4, a: matrix, b: matrix, c, ldc: 4 };
    gemm_grouped(&Pool::new(1), 1.0, &[member(15), member(0)], &mut [0.0; 40], 0.0);
}

#[test]
fn the_fallback_is_the_same_product() {
    for pool in [1, 2].map(Pool::new) {
        for (m, n, k) in [(1, 1, 1), (30, 40, 50), (65, 700, 33)] {
            let (a, b) = (noise(m * k, 1), noise(k * n, 2));
            let (a, b) = (MatRef::new(&a[..], m).transposed(), MatRef::new(&b[..], k).transposed());
            let old = noise(m * (n + 3), 3);
            for beta in [0.0, 0.5] {
                let (mut expected, mut c) = (old.clone(), old.clone());
                gemm(&pool, m, n, k, -2.0, a, b, &mut expected, n + 3, beta);
                fallback::product(&pool, Sizes { m, n, k }, a, b, Disjoint::new(&mut c), n + 3, -2.0, beta);
                let bound = 1e-5 * (k as f32).sqrt();
                assert!(c.iter().zip(&expected).all(|(c, e)| (c - e).abs() <= bound), "{m}x{n}x{k}");
            }
        }
    }
}
