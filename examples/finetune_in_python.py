"""Fine-tune on rows from anywhere, look at the scores, predict: the same engine as the command."""

import pandas as pd

import headstart

topics = {"food": ["soup", "bread", "cheese", "pasta"], "sport": ["match", "goal", "race", "team"]}
rows = [
    {"text": f"the {word} was the talk of the {day}", "topic": topic}
    for topic, words in topics.items()
    for word in words
    for day in ("day", "week", "month", "year", "town", "house", "season", "evening")
]

run = headstart.finetune(pd.DataFrame(rows), label="topic", epochs=4, batch_size=8)

accuracy = run.scores["validation"]["accuracy"]
print(f"accuracy {accuracy['value']:.2f}, 95% interval {accuracy['low']:.2f} to {accuracy['high']:.2f}")
for prediction in run.predict(["the cheese was fine", "a goal in the last minute"]):
    print(prediction.prediction, round(prediction.probability, 2))
