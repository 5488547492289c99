//! Mixtures of experts (Shazeer et al. 2017): a router sends each token through a few of many feed-forward layers.

use swift_sdk::{Init, Value, scope};

use crate::{Activation, Linear, Net};

/// What scores of experts are made of a token's logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    /// Softmax over all experts.
    Softmax,
    /// Sigmoid of each.
    Sigmoid,
}

/// Experts are chosen from the best groups only (DeepSeek-V2, section 2.2.2).
#[derive(Clone, Copy, Debug)]
pub struct Groups {
    /// Number of groups.
    pub count: u64,
    /// Groups that a token may choose from.
    pub chosen: u64,
    /// A group is as good as the sum of so many of its best experts.
    pub best: u32,
}

/// Chooses experts by a linear layer over the token.
#[derive(Clone, Copy, Debug)]
pub struct Router {
    /// Number of experts.
    pub experts: u64,
    /// Experts for each token.
    pub chosen: u32,
    /// How logits become scores.
    pub scores: Scores,
    /// Scores are biased by `e_score_correction_bias` while choosing, though not as weights (DeepSeek-V3, section 2.1.2).
    pub corrected: bool,
    /// Restricts the choice.
    pub groups: Option<Groups>,
    /// Weights of the chosen sum to 1.
    pub normalized: bool,
    /// Factor of the weights.
    pub factor: f64,
}

/// Chosen experts of each token, s32 `[n, k]`, and their weights `[n, k]`.
pub struct Choice {
    experts: Value,
    weights: Value,
}

impl Router {
    /// Softmax, without restrictions.
    pub fn new(experts: u64, chosen: u32) -> Router {
        let scores = Scores::Softmax;
        Router { experts, chosen, scores, corrected: false, groups: None, normalized: false, factor: 1.0 }
    }

    /// The choice for each token of x `[n, d]`, by the module's `weight`. It is no site: adapters leave routers alone.
    pub fn choose(&self, net: &Net, x: &Value, d: u64) -> Choice {
        let weight = net.matrix("weight", &[self.experts, d], &["router"]);
        let logits = x.matmul_transposed(&weight);
        let scores = match self.scores {
            Scores::Softmax => logits.softmax(-1),
            Scores::Sigmoid => logits.sigmoid(),
        };
        let ranked = if self.corrected {
            &scores + net.tensor("e_score_correction_bias", &[self.experts], Init::Zeros, &["frozen"])
        } else {
            scores.clone()
        };
        let ranked = self.groups.map_or_else(|| ranked.clone(), |groups| self.restrict(net, &ranked, groups));
        let (_, experts) = ranked.stop_grad().top_k(self.chosen);
        let mut weights = scores.gather_last(&experts);
        if self.normalized {
            // As in the reference: no division by zero.
            let sum = weights.sum_axis(-1).reshape((net.tokens(), 1)) + 1e-20;
            weights = weights / sum;
        }
        Choice { experts, weights: if self.factor == 1.0 { weights } else { weights * self.factor } }
    }

    /// Scores with those outside of the best groups out of reach.
    fn restrict(&self, net: &Net, scores: &Value, groups: Groups) -> Value {
        let Groups { count, chosen, best } = groups;
        let (n, size) = (net.tokens(), self.experts / count.max(1));
        let apart = scores.stop_grad().reshape((n, count, size));
        let (_, reachable) = apart.top_k(best).0.sum_axis(-1).top_k(chosen as u32);
        let ones = reachable.to_f32() * 0.0 + 1.0;
        let reach = ones.scatter_last(&reachable, count).reshape((n, count, 1));
        (apart + (reach - 1.0) * 1e30).reshape((n, self.experts))
    }
}

/// Gated feed-forward layers, `experts.<i>.<name>` each, of which every token goes through the chosen ones.
#[derive(Clone, Copy, Debug)]
pub struct Experts<'a> {
    /// Number of experts.
    pub count: u64,
    /// Experts for each token.
    pub chosen: u32,
    /// Width of the residual stream.
    pub d: u64,
    /// Width of an expert.
    pub d_ff: u64,
    /// Of the gate.
    pub activation: Activation,
    /// Names of gate, up and down projections.
    pub names: [&'a str; 3],
}

impl Experts<'_> {
    /// The chosen experts' outputs by their weights: `[n, d]`.
    pub fn apply(&self, net: &Net, x: &Value, choice: &Choice) -> Value {
        let [gate, up, down] = self.names;
        let k = u64::from(self.chosen);
        scope("experts", || {
            let net = net.at("experts");
            let wide = |name: &str| net.grouped_linear(name, x, &choice.experts, self.count, Linear::new(self.d, self.d_ff));
            let gated = self.activation.apply(&wide(gate)) * wide(up);
            // What the last layer reads has one expert a row.
            let rows = net.tokens() * k;
            let (gated, experts) = (gated.reshape((rows, self.d_ff)), choice.experts.reshape((rows, 1)));
            let each = net.grouped_linear(down, &gated, &experts, self.count, Linear::new(self.d_ff, self.d));
            let each = each.reshape((net.tokens(), k, self.d));
            (each * choice.weights.reshape((net.tokens(), k, 1))).sum_axis(1)
        })
    }
}
