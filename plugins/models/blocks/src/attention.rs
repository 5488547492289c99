//! Attention layers.

use swift_sdk::model::Attention;
use swift_sdk::{Error, Result, Value, concat, scope};

use crate::{Linear, Net, Norm, Rope};

/// Grouped-query attention (Ainslie et al. 2023): `query` heads in groups that share one of `key` heads; with as many of both it is
/// plain multi-head attention, with one key head multi-query attention.
#[derive(Clone, Debug)]
pub struct Heads<'a> {
    /// Number of the layer.
    pub layer: u32,
    /// Query heads.
    pub query: u64,
    /// Key and value heads.
    pub key: u64,
    /// Size of a query or key head.
    pub size: u64,
    /// Size of a value head, not over that of keys.
    pub value_size: u64,
    /// How queries and keys turn with the position.
    pub rope: Option<&'a Rope>,
    /// Norm of each query and key head before it turns, `q_norm` and `k_norm`.
    pub norm: Option<Norm>,
    /// Factor and mask of the scores.
    pub scores: Attention,
}

impl<'a> Heads<'a> {
    /// Causal attention with scores divided by the root of the head's size.
    pub fn new(layer: u32, [query, key, size]: [u64; 3]) -> Heads<'a> {
        let scores = Attention { scale: (size as f32).sqrt().recip(), ..Attention::default() };
        Heads { layer, query, key, size, value_size: size, rope: None, norm: None, scores }
    }

    /// Refuses counts that do not share.
    ///
    /// # Errors
    /// Naming both counts.
    pub fn check([query, key, size]: [u64; 3]) -> Result<()> {
        if query == 0 || key == 0 || size == 0 || query % key != 0 {
            return Err(Error::config(format!("{query} query heads of {size} cannot share {key} key and value heads")));
        }
        Ok(())
    }

    /// With rotary positions.
    #[must_use]
    pub fn rope(self, rope: &'a Rope) -> Heads<'a> {
        Heads { rope: Some(rope), ..self }
    }

    /// With normed queries and keys.
    #[must_use]
    pub fn normed(self, norm: Norm) -> Heads<'a> {
        Heads { norm: Some(norm.of_width(self.size)), ..self }
    }

    /// Over the last so many tokens only.
    #[must_use]
    pub fn window(mut self, window: Option<u32>) -> Heads<'a> {
        self.scores.window = window;
        self
    }

    /// Another factor of the scores, and their cap.
    #[must_use]
    pub fn scores(mut self, scale: f64, softcap: Option<f64>) -> Heads<'a> {
        (self.scores.scale, self.scores.softcap) = (scale as f32, softcap.map(|c| c as f32));
        self
    }

    /// Every token sees every other of its sequence.
    #[must_use]
    pub fn bidirectional(mut self) -> Heads<'a> {
        self.scores.causal = false;
        self
    }

    /// Width of all queries.
    pub fn d_query(&self) -> u64 {
        self.query * self.size
    }

    /// Width of all keys, or values.
    pub fn d_key(&self) -> u64 {
        self.key * self.size
    }

    /// Norm, turn, attend: q `[n, query · size]`, k and v `[n, key · size]` to `[n, query · size]`.
    pub fn attend(&self, net: &Net, q: &Value, k: &Value, v: &Value) -> Value {
        let apart = |x: &Value, heads: u64| x.reshape((net.tokens(), heads, self.size));
        let placed = |x: Value, norm_name: &str| {
            let x = self.norm.map_or_else(|| x.clone(), |norm| net.norm(norm_name, &x, norm));
            self.rope.map_or_else(|| x.clone(), |rope| rope.turn(net, &x))
        };
        let (q, k) = (placed(apart(q, self.query), "q_norm"), placed(apart(k, self.key), "k_norm"));
        self.mix(net, &q, &k, &apart(v, self.key))
    }

    /// Attention of heads that are placed already: q `[n, query, size]`, k `[n, key, size]` and v `[n, key, value_size]` to
    /// `[n, query · value_size]`.
    pub fn mix(&self, net: &Net, q: &Value, k: &Value, v: &Value) -> Value {
        let width = self.query * self.value_size;
        if self.value_size == self.size || !net.is_cached() {
            let y = net.attention(self.layer, q, k, v, (self.key, self.size), self.scores);
            return y.reshape((net.tokens(), width));
        }
        // A cache holds keys and values of one size.
        let zeros = k.slice(-1, 0, self.size - self.value_size) * 0.0;
        let y = net.attention(self.layer, q, k, &concat(&[v, &zeros], -1), (self.key, self.size), self.scores);
        y.slice(-1, 0, self.value_size).reshape((net.tokens(), width))
    }

    /// The whole layer over x `[n, d]` with `q_proj`, `k_proj`, `v_proj` and `o_proj`; biases in the first three and in the last.
    pub fn self_attention(&self, net: &Net, x: &Value, d: u64, [bias, output_bias]: [bool; 2]) -> Value {
        scope("self_attn", || {
            let q = net.linear("q_proj", x, Linear::new(d, self.d_query()).bias(bias));
            let k = net.linear("k_proj", x, Linear::new(d, self.d_key()).bias(bias));
            let v = net.linear("v_proj", x, Linear::new(d, self.d_key()).bias(bias));
            let y = self.attend(net, &q, &k, &v);
            net.linear("o_proj", &y, Linear::new(self.d_query(), d).bias(output_bias))
        })
    }

    /// Splits `[n, (query + 2 key) · size]`, queries first, values last.
    pub fn split(&self, joined: &Value) -> [Value; 3] {
        let (q, k) = (self.d_query(), self.d_key());
        [joined.slice(-1, 0, q), joined.slice(-1, q, k), joined.slice(-1, q + k, k)]
    }
}
