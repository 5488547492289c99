//! Layers that see everything and layers that see a window.

use swift_sdk::config;

config! {
    /// What a layer's attention sees, as in `layer_types`.
    pub enum LayerType {
        /// Everything before.
        Full = "full_attention",
        /// The last `sliding_window` tokens.
        Sliding = "sliding_attention",
    }
}

impl LayerType {
    /// The type of a layer: the configuration's list, or, without one, sliding where `sliding` says so.
    pub fn of(list: Option<&[LayerType]>, layer: u32, sliding: bool) -> LayerType {
        let listed = list.and_then(|list| list.get(layer as usize).copied());
        listed.unwrap_or(if sliding { LayerType::Sliding } else { LayerType::Full })
    }

    /// The window, if the layer has one.
    pub fn window(self, window: Option<u32>) -> Option<u32> {
        window.filter(|&w| self == LayerType::Sliding && w > 0)
    }
}
