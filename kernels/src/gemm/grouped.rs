//! Many products of different sizes at once: the experts of a mixture, each with the rows that chose it.

use super::blocked::Sizes;
use super::{MatRef, check_output, product};
use crate::pool::{Disjoint, Pool};

/// One product of a group: `a` is `[m, k]`, `b` is `[k, n]`.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// Rows of the output; a member without any is skipped.
    pub m: usize,
    /// Columns of the output.
    pub n: usize,
    /// Values that are summed over.
    pub k: usize,
    /// The left operand.
    pub a: MatRef<'a>,
    /// The right operand.
    pub b: MatRef<'a>,
    /// Where its output starts in the group's.
    pub c: usize,
    /// Distance between the rows of its output.
    pub ldc: usize,
}

impl Member<'_> {
    fn is_empty(&self) -> bool {
        self.m == 0 || self.n == 0
    }

    fn work(&self) -> usize {
        self.m * self.n * self.k
    }
}

/// `c = alpha a b + beta c` for each member, as [`super::gemm`] computes it, bitwise.
///
/// Members that are large beside the group run one after the other on all threads, the others side by side.
///
/// # Panics
/// When an operand or an output is too short, or outputs overlap.
#[track_caller]
pub fn gemm_grouped(pool: &Pool, alpha: f32, members: &[Member<'_>], c: &mut [f32], beta: f32) {
    let mut order: Vec<&Member<'_>> = members.iter().filter(|member| !member.is_empty()).collect();
    order.sort_by_key(|member| member.c);
    for (index, member) in order.iter().enumerate() {
        member.a.check(member.m, member.k);
        member.b.check(member.k, member.n);
        check_output(member.m, member.n, c.len().saturating_sub(member.c), member.ldc);
        let end = member.c + (member.m - 1) * member.ldc + member.n;
        assert!(order.get(index + 1).is_none_or(|next| end <= next.c), "outputs of the group overlap");
    }
    order.sort_by_key(|member| std::cmp::Reverse(member.work()));
    let total: usize = order.iter().map(|member| member.work()).sum();
    let large = order.iter().take_while(|member| 2 * pool.threads() * member.work() > total).count();
    let c = Disjoint::new(c);
    let one = |member: &Member<'_>| {
        let sizes = Sizes { m: member.m, n: member.n, k: member.k };
        product(pool, sizes, member.a, member.b, c.after(member.c), member.ldc, alpha, beta);
    };
    order[..large].iter().for_each(|member| one(member));
    pool.run(order.len() - large, &|index| one(order[large + index]));
}
