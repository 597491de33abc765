"""Ask for embeddings with OpenAI's client, which reads OPENAI_BASE_URL and OPENAI_API_KEY."""

from openai import OpenAI


def main() -> None:
    with OpenAI() as client:
        [model] = client.models.list()
        answer = client.embeddings.create(
            model=model.id, input=["How do I log in?", "Reset my password", "Bake bread"]
        )
    query, *candidates = [item.embedding for item in answer.data]
    for candidate in candidates:
        # The cosine: embeddings are of length 1.
        print(f"{sum(a * b for a, b in zip(query, candidate, strict=True)):.2f}")
    print(f"{answer.usage.prompt_tokens} tokens, {model.id}")


if __name__ == "__main__":
    main()
