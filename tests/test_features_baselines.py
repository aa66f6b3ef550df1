"""ALS and noise keep the plugins' contract; ALS folds in as `implicit` does."""

import numpy as np
import pytest
from contracts import PluginContract
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix

from features.baselines import ALS, Noise
from features.errors import PairliftError
from features.plugin import FeaturePlugin, make_plugin, plugin_class
from features.schema import one_request


class TestALS(PluginContract):
    exact = False

    def make(self) -> FeaturePlugin:
        return ALS(factors=8, iterations=5)

    def test_fold_in_equals_implicit(self, case: tuple) -> None:  # type: ignore[type-arg]
        plugin, _, requests, histories = case
        model = AlternatingLeastSquares(factors=8, regularization=plugin.settings.regularization, alpha=1.0)
        model.item_factors = np.nan_to_num(plugin.item_vectors)
        for r in range(5):
            start, stop = histories.before(requests.user[r : r + 1], requests.as_of[r : r + 1])
            rows = slice(int(start[0]), int(stop[0]))
            item, weight = histories.item[rows], plugin._confidence(histories.grade[rows])
            keep = weight > 0
            matrix = csr_matrix(
                (weight[keep], (np.zeros(keep.sum(), int), item[keep])), shape=(1, len(model.item_factors))
            )
            theirs = model.recalculate_user(0, matrix)
            ours = plugin.user_vectors(requests.slice(r, r + 1), histories)[0]
            np.testing.assert_allclose(ours, np.ravel(theirs), rtol=1e-2, atol=1e-2)


class TestNoise(PluginContract):
    def make(self) -> FeaturePlugin:
        return Noise()

    def test_it_is_even_and_differs_by_user_item_and_time(self, case: tuple) -> None:  # type: ignore[type-arg]
        plugin, _, requests, histories = case
        values = plugin.values(requests, histories)[:, 0]
        assert len(np.unique(values)) > 0.95 * len(values)
        assert abs(values.mean() - 0.5) < 0.06
        items = np.arange(50, dtype=np.int32)
        asked = [(0, 5), (1, 5), (0, 6)]
        rows = [plugin.values(one_request(user, as_of, 0, items), histories)[:, 0] for user, as_of in asked]
        for a, b in ((0, 1), (0, 2)):
            assert abs(np.corrcoef(rows[a], rows[b])[0, 1]) < 0.5


@pytest.mark.parametrize(
    ("path", "says"),
    [("nowhere:X", "No module"), ("features.baselines:Als", "no attribute"), ("features.baselines", "module:Class"),
     ("features.schema:Catalog", "lacks fit, values")],
)  # fmt: skip
def test_a_wrong_path_is_told(path: str, says: str) -> None:
    with pytest.raises(PairliftError, match=says):
        plugin_class(path)


def test_a_wrong_option_is_told_by_the_plugins_name() -> None:
    with pytest.raises(PairliftError, match=r"\[plugins.mine\]: factor"):
        make_plugin("mine", "features.baselines:ALS", {"factor": 8})
    with pytest.raises(PairliftError, match=r"\[plugins.mine\]"):
        make_plugin("mine", "features.baselines:Noise", {"factor": 8})
