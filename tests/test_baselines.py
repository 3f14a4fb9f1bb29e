import numpy as np

from headstart.baselines import majority_baseline
from small_training import tfidf_logistic


def test_the_majority_is_the_most_frequent_class_of_train() -> None:
    probabilities = majority_baseline(np.array([2, 2, 0, -1, 2]), 3, 4)
    assert probabilities.shape == (4, 3)
    assert (probabilities.argmax(1) == 2).all()
    np.testing.assert_allclose(probabilities[0], [0.25, 0, 0.75])


def test_tfidf_learns_words_and_gives_probabilities() -> None:
    texts = [f"a {word} thing {index}" for index in range(20) for word in ("red", "blue")]
    labels = np.array([0, 1] * 20)
    baseline = tfidf_logistic(texts, None, labels, 3)
    probabilities = baseline.predict(["red", "blue", ""], None)
    assert probabilities.argmax(1).tolist()[:2] == [0, 1]
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (probabilities[:, 2] == 0).all()


def test_pairs_are_judged_by_their_overlap() -> None:
    words = ["red", "blue", "green", "large", "small", "round"]
    pairs = [(one, other) for one in words for other in words]
    labels = np.array([int(one == other) for one, other in pairs])
    baseline = tfidf_logistic([one for one, _ in pairs], [other for _, other in pairs], labels, 2)
    found = baseline.predict(["red", "red"], ["red", "round"])
    assert found[0, 1] > found[1, 1]


def test_texts_without_words_and_one_class_fall_back_to_the_frequencies() -> None:
    for texts, labels in ((["!", "?"], [0, 1]), (["a", "b"], [1, 1])):
        probabilities = tfidf_logistic(texts, None, np.array(labels), 2).predict(["a"], None)
        np.testing.assert_allclose(probabilities, majority_baseline(np.array(labels), 2, 1))


def test_the_same_seed_gives_the_same_probabilities() -> None:
    texts, labels = ["a b", "c d", "a d", "c b"] * 5, np.array([0, 1, 0, 1] * 5)
    first, second = (tfidf_logistic(texts, None, labels, 2, seed=1).predict(texts, None) for _ in range(2))
    assert (first == second).all()
