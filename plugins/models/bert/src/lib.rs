//! BERT (Devlin et al. 2019, section 3; the encoder of Vaswani et al. 2017, with norms after each part). Names are those of `BertModel`;
//! its output is "last_hidden_state". Every token belongs to the first segment.

use blocks::{Activation, Architecture, FeedForward, Heads, Linear, Net, Norm};
use swift_sdk::prelude::*;

config! {
    /// The values of model_type that are taken.
    pub enum Kind {
        /// The only one.
        Bert = "bert",
    }
}

config! {
    /// BERT encoders and sentence embedders.
    pub struct Bert {
        /// The family.
        model_type: Kind = Kind::Bert,
        /// Tokens in the vocabulary.
        vocab_size: u64 = 30522,
        /// Width of the residual stream.
        hidden_size: u64 = 768,
        /// Width of the feed-forward layer.
        intermediate_size: u64 = 3072,
        /// Number of blocks.
        num_hidden_layers: u32 = 12,
        /// Heads.
        num_attention_heads: u64 = 12,
        /// Activation of the feed-forward layer.
        hidden_act: Activation = Activation::Gelu,
        /// Added to the variance in norms.
        layer_norm_eps: f64 = 1e-12,
        /// Longest sequence of the training.
        max_position_embeddings: u64 = 512,
        /// Deviation of fresh weights.
        initializer_range: f32 = 0.02,
        /// Kinds of segments.
        type_vocab_size: u64 = 2,
        ..
    }
}

impl Bert {
    fn heads(&self) -> [u64; 3] {
        [self.num_attention_heads, self.num_attention_heads, self.hidden_size / self.num_attention_heads.max(1)]
    }

    fn embeddings(&self, net: &Net) -> Value {
        let d = self.hidden_size;
        let words = net.embed("word_embeddings", &net.input("ids"), self.vocab_size, d);
        let positions = net.embed("position_embeddings", &net.input("positions"), self.max_position_embeddings, d);
        let init = Init::Normal(self.initializer_range);
        let kinds = net.tensor("token_type_embeddings.weight", &[self.type_vocab_size, d], init, &["embedding"]);
        words + positions + kinds.slice(0, 0, 1)
    }

    fn attention(&self, net: &Net, heads: &Heads, x: &Value) -> Value {
        let biased = Linear::new(self.hidden_size, self.hidden_size).bias(true);
        scope("attention", || {
            let [q, k, v] = ["self.query", "self.key", "self.value"].map(|name| net.linear(name, x, biased));
            net.linear("output.dense", &heads.attend(net, &q, &k, &v), biased)
        })
    }
}

impl Architecture for Bert {
    fn initializer_range(&self) -> f32 {
        self.initializer_range
    }

    fn forward(&self, net: &Net) -> Result<()> {
        Heads::check(self.heads())?;
        let d = self.hidden_size;
        let norm = Norm::layer(d, self.layer_norm_eps);
        let mlp = FeedForward::new(d, self.intermediate_size, self.hidden_act);
        let embedded = self.embeddings(&net.at("embeddings"));
        let mut x = net.norm("embeddings.LayerNorm", &embedded, norm);
        for layer in 0..self.num_hidden_layers {
            x = net.within(&format!("encoder.layer.{layer}"), |net| {
                let heads = Heads::new(layer, self.heads()).bidirectional();
                let attended = &x + self.attention(&net.at("attention"), &heads, &x);
                let x = net.norm("attention.output.LayerNorm", &attended, norm);
                let fed = &x + mlp.apply(net, &x, ["intermediate.dense", "output.dense"]);
                net.norm("output.LayerNorm", &fed, norm)
            });
        }
        net.output("last_hidden_state", &x);
        Ok(())
    }
}

blocks::model! { "bert": Bert }
