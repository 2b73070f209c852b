"""One file a strategy: `async def solve(solving, settings) -> Solution`, and what its paper does otherwise."""
