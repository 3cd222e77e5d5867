import gradio as gr

with gr.Blocks() as demo:
    gr.Markdown("This page is app.py.")

if __name__ == "__main__":
    demo.launch()
