//! Initial values, drawn from counters: a tensor depends on the seed and its name alone, never on what was drawn before it.

use swift_kernels::pool::Pool;
use swift_kernels::random;

use crate::{Error, Result};

/// What a new weight is filled with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// 0.
    Zeros,
    /// 1.
    Ones,
    /// One number.
    Constant(f32),
    /// Normal with mean 0 and this standard deviation.
    Normal(f32),
    /// Uniform in `-bound..bound`.
    Uniform(f32),
    /// Uniform with bound `sqrt(6 / ((1 + a²) · fan_in))` (He et al. 2015); `fan_in` is the product of all sizes but the first, and
    /// `a` the negative slope of the rectifier, `sqrt(5)` for the usual linear layer.
    KaimingUniform(f32),
    /// Orthonormal rows (or columns, where there are fewer) times this gain (Saxe et al. 2014); matrices only.
    Orthogonal(f32),
}

/// Elements of a tensor of `shape`, as a function of `seed` and `name`.
///
/// # Errors
/// When the distribution does not apply to the shape; `name` goes into the message.
pub fn init(distribution: Distribution, seed: u64, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let elements = shape.iter().product();
    // A single thread: draws take a nanosecond an element, once.
    let pool = Pool::new(1);
    let stream = stream(name);
    let mut out = vec![0.0; elements];
    match distribution {
        Distribution::Zeros => {}
        Distribution::Ones => out.fill(1.0),
        Distribution::Constant(value) => out.fill(value),
        Distribution::Normal(std) => {
            random::normal(&pool, seed, stream, 0, &mut out);
            out.iter_mut().for_each(|x| *x *= std);
        }
        Distribution::Uniform(bound) => uniform(&pool, seed, stream, bound, &mut out),
        Distribution::KaimingUniform(a) => {
            let fan_in = match shape {
                [] => return Err(Error::tensor("weight", name, "is a number; kaiming-uniform needs an axis")),
                [only] => *only,
                [_, rest @ ..] => rest.iter().product(),
            };
            let bound = (6.0 / ((1.0 + f64::from(a).powi(2)) * fan_in.max(1) as f64)).sqrt();
            uniform(&pool, seed, stream, bound as f32, &mut out);
        }
        Distribution::Orthogonal(gain) => {
            let &[rows, cols] = shape else {
                return Err(Error::tensor("weight", name, format!("has shape {shape:?}; orthogonal needs a matrix")));
            };
            random::normal(&pool, seed, stream, 0, &mut out);
            orthonormalize(rows, cols, &mut out);
            out.iter_mut().for_each(|x| *x *= gain);
        }
    }
    Ok(out)
}

fn uniform(pool: &Pool, seed: u64, stream: u64, bound: f32, out: &mut [f32]) {
    random::uniform(pool, seed, stream, 0, out);
    out.iter_mut().for_each(|x| *x = (2.0 * *x - 1.0) * bound);
}

/// FNV-1a of the name, which numbers its stream of random words.
fn stream(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Gram and Schmidt over the shorter axis, twice for accuracy. With positive lengths, normal entries give the uniform measure on
/// orthonormal frames.
fn orthonormalize(rows: usize, cols: usize, data: &mut [f32]) {
    let (count, len) = (rows.min(cols), rows.max(cols));
    let at = |vector: usize, i: usize| if rows <= cols { vector * cols + i } else { i * cols + vector };
    let mut frame = vec![0.0f64; count * len];
    for vector in 0..count {
        let (done, rest) = frame.split_at_mut(vector * len);
        let current = &mut rest[..len];
        current.iter_mut().enumerate().for_each(|(i, x)| *x = f64::from(data[at(vector, i)]));
        for _ in 0..2 {
            for other in done.chunks_exact(len) {
                let dot: f64 = other.iter().zip(&*current).map(|(a, b)| a * b).sum();
                current.iter_mut().zip(other).for_each(|(x, o)| *x -= dot * o);
            }
        }
        let norm = current.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
        for (i, x) in current.iter_mut().enumerate() {
            *x /= norm;
            data[at(vector, i)] = *x as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_depend_on_seed_and_name_only() {
        let draw = |seed, name| init(Distribution::Normal(0.5), seed, name, &[40, 50]).unwrap();
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
        let variance = draw(3, "w").iter().map(|x| x * x).sum::<f32>() / 2000.0;
        assert!((variance - 0.25).abs() < 0.03, "{variance}");
    }

    #[test]
    fn kaiming_bound_is_torch_s() {
        // nn.Linear(64, 8): a = sqrt(5) gives the bound 1 / sqrt(64).
        let x = init(Distribution::KaimingUniform(5f32.sqrt()), 7, "w", &[8, 64]).unwrap();
        let top = x.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(top <= 0.125 && top > 0.12, "{top}");
        assert!(init(Distribution::KaimingUniform(0.0), 7, "w", &[]).is_err());
    }

    #[test]
    fn orthogonal_frames() {
        for (rows, cols) in [(3, 7), (7, 3), (4, 4)] {
            let x = init(Distribution::Orthogonal(2.0), 7, "w", &[rows, cols]).unwrap();
            let at = |v: usize, i: usize| if rows <= cols { x[v * cols + i] } else { x[i * cols + v] };
            for a in 0..rows.min(cols) {
                for b in 0..rows.min(cols) {
                    let dot: f32 = (0..rows.max(cols)).map(|i| at(a, i) * at(b, i)).sum();
                    assert!((dot - if a == b { 4.0 } else { 0.0 }).abs() < 1e-5);
                }
            }
        }
        assert!(init(Distribution::Orthogonal(1.0), 7, "b", &[3]).is_err());
    }
}
