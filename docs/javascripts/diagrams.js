// Draws Mermaid diagrams without a request to anybody else. The theme would fetch Mermaid from
// elsewhere if there were none. This one stands in for it, and loads the real one, which
// scripts/docs.py has put beside this file, when a page has a diagram.
(() => {
  const file = new URL("mermaid.min.js", document.currentScript.src);
  let settings;
  let loaded;

  const load = () =>
    new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = file;
      script.onload = () => {
        window.mermaid.initialize(settings);
        resolve(window.mermaid);
      };
      script.onerror = () => reject(new Error(`Diagrams stay text: there is no ${file}`));
      document.head.append(script);
    });

  window.mermaid = {
    initialize: (given) => {
      settings = given;
    },
    render: async (...diagram) => {
      loaded ??= load();
      const drawn = await (await loaded).render(...diagram);
      // Text can be read at a little less than half its size. Below that, the diagram is scrolled.
      const svg = drawn.svg.replace(
        /max-width: ([\d.]+)px;/,
        (whole, width) => `${whole} min-width: ${0.45 * width}px;`,
      );
      return { ...drawn, svg };
    },
  };
})();
